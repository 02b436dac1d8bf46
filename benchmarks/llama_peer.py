"""llama.cpp on the pair, through llama-cpp-python and with the pair converted to GGUF: a peer where both packages are
installed (`pip install llama-cpp-python gguf`; the former is built on the spot and wants a C++ compiler)."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

DRAFTED = 5
"""Tokens a draft, as with transformers' assisted generation."""


def missing() -> str:
    """Why it cannot be measured here; "" where it can."""
    for module in ("llama_cpp", "gguf"):
        try:
            __import__(module)
        except ImportError as error:
            return f"{module} is not installed ({error})"
    return ""


def convert(folder: Path, out: Path) -> Path:
    """A Llama checkpoint of transformers as float32 GGUF without a tokenizer: only ids go in and out."""
    from gguf import GGUFWriter
    from transformers import AutoModelForCausalLM

    config = json.loads((folder / "config.json").read_text())
    if config["architectures"] != ["LlamaForCausalLM"]:
        raise SystemExit(f"{folder} is {config['architectures']}, only LlamaForCausalLM is converted here")
    weights = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").state_dict()
    path = out / f"{folder.name}.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    for name, tensor in weights.items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        writer.add_tensor(_name(name), _laid_out(name, tensor.float().numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name(name: str) -> str:
    """GGUF's name of a tensor."""
    fixed = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    inner = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    stem = name.removesuffix(".weight")
    if stem in fixed:
        return f"{fixed[stem]}.weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{inner[rest]}.weight"


def _laid_out(name: str, weight: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """llama.cpp rotates neighbouring pairs where transformers rotates halves: queries' and keys' rows are interleaved."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    count = next((heads[key] for key in heads if f".{key}." in name), None)
    if count is None:
        return np.ascontiguousarray(weight)
    rows, columns = weight.shape
    halves = weight.reshape(count, 2, rows // count // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


class LlamaCpp:
    """Each method writes all texts once, one after another, and returns tokens/s."""

    def __init__(
        self, target: Path, draft: Path, folder: Path, prompts: Sequence[Sequence[int]], tokens: int, eos: int
    ) -> None:
        from llama_cpp import Llama

        options: dict[str, Any] = {"n_ctx": 1024, "verbose": False, "logits_all": True}
        models = [str(convert(path, folder)) for path in (target, draft)]
        self._plain = Llama(models[0], **options)
        self._assisted = Llama(models[0], draft_model=_Draft(Llama(models[1], **options)), **options)
        self._prompts = prompts
        self._tokens = tokens
        self._eos = eos
        self.others: dict[str, list[tuple[int, ...]]] = {}

    def generate(self) -> float:
        return self._write("llama.cpp", self._plain)

    def assisted(self) -> float:
        return self._write("llama.cpp with draft", self._assisted)

    def _write(self, name: str, model: Any) -> float:
        texts, start = [], time.perf_counter()
        for prompt in self._prompts:
            text: list[int] = []
            for token in islice(model.generate(list(prompt), temp=0.0, repeat_penalty=1.0), self._tokens):
                text.append(token)
                if token == self._eos:
                    break
            texts.append(tuple(text))
        self.others[name] = texts
        return sum(map(len, texts)) / (time.perf_counter() - start)


class _Draft:
    """What llama-cpp-python asks for guesses."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, input_ids: Any, /, **_: Any) -> Any:
        guesses = self._model.generate([int(one) for one in input_ids], temp=0.0, repeat_penalty=1.0)
        return np.array(list(islice(guesses, DRAFTED)), dtype=np.intc)
