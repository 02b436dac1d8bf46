"""Tiny random models for tests, ours and our users': a few kilobytes, made in milliseconds, any architecture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 97

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-untied": {"model_type": "llama", "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 20,
        "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    },
    "qwen3": {"model_type": "qwen3"},
    "mistral-window": {"model_type": "mistral", "sliding_window": 20},
    "gpt-neox": {"model_type": "gpt_neox"},
    "gemma": {"model_type": "gemma"},
    "gemma2": {
        "model_type": "gemma2",
        "sliding_window": 20,
        "query_pre_attn_scalar": 12,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 9.0,
    },
}
"""Configurations by name; the key is what `save_tiny_model` takes."""


def save_tiny_model(
    folder: Path, family: str = "llama", *, seed: int = 0, rounded: bool = True, **overrides: Any
) -> Path:
    """Write a random model of `family` into `folder` (config.json and weights) and return it. Weights are drawn wide enough
    for the model to have opinions: with the usual initialisation every token is about equally likely. `rounded`: they are
    bfloat16 numbers, as those of most checkpoints are."""
    settings = {**_COMMON, **FAMILIES[family], **overrides}
    config = AutoConfig.for_model(**settings)
    random_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            width = 0.6 if "embed" in name or "lm_head" in name else 1.2
            parameter.data.normal_(0.0, width * parameter.shape[-1] ** -0.5)
        else:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        if rounded:
            parameter.data.copy_(parameter.data.bfloat16())
    torch.random.set_rng_state(random_state)
    model.save_pretrained(folder)
    return folder


def stock_model(folder: Path, implementation: str = "eager") -> Any:
    """The same model with transformers' own attention, float32 on the CPU."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=implementation).eval()


@torch.inference_mode()
def stock_logits(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Logits of every position of one sequence, computed at once and without a cache: float32 (tokens, vocabulary)."""
    return model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0].float()
