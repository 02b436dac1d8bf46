"""The shipped pair, and prompts to run it on."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "models" / "tiny-target"
DRAFT = ROOT / "models" / "tiny-draft"
SPEC_BENCH = ROOT.parent / "shared" / "prompts" / "spec_bench.jsonl"
OWN_PROMPTS = ROOT / "tests" / "data" / "prompts.jsonl"


@cache
def prompts(count: int) -> list[str]:
    """Spec-Bench's first turns where they lie beside the checkout, else our own, over and over."""
    path = SPEC_BENCH if SPEC_BENCH.exists() else OWN_PROMPTS
    found = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
    return [found[index % len(found)] for index in range(count)]


class Reference:
    """The target alone, by transformers: what every fleet's text must equal."""

    def __init__(self, path: Path = TARGET) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)

    def greedy(self, prompt: str, count: int) -> list[int]:
        """`generate(do_sample=False)`."""
        inputs = self.tokenizer(prompt, return_tensors="pt")
        output = self.model.generate(
            **inputs, do_sample=False, max_new_tokens=count, pad_token_id=self.model.generation_config.eos_token_id
        )
        return [int(token) for token in output[0, inputs["input_ids"].shape[1] :]]

    def seeded(self, prompt: str, count: int, temperature: float, top_p: float, seed: int) -> list[int]:
        """Sampling token by token with transformers' own logits processors and the match rule's noise: the token at
        position t is argmax_v(log p_t(v) + G(seed, t, v))."""
        import torch
        from transformers import DynamicCache, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

        from specfleet.engine.noise import gumbel_reference

        warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        text, fed, cache_ = ids[0].tolist(), ids, DynamicCache()
        vocabulary = np.arange(self.model.config.vocab_size)
        output: list[int] = []
        with torch.inference_mode():
            while len(output) < count:
                # By place: transformers 5.24 calls it `cache`, those before `past_key_values`.
                logits = self.model(fed, None, None, cache_, use_cache=True).logits[:, -1]
                log_p = torch.log_softmax(warpers(ids, logits), -1)[0].numpy()
                token = int(np.argmax(log_p + gumbel_reference(seed, len(text), vocabulary)))
                output.append(token)
                text.append(token)
                if token == self.model.generation_config.eos_token_id:
                    break
                fed = torch.tensor([[token]])
        return output
