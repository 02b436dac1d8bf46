"""What a pair is worth: loss per domain, acceptance, agreement, step costs, and a look at its greedy text."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from transformers import DynamicCache

from models.train.corpus import Corpus

WINDOW = 256


@torch.inference_mode()
def losses(model: Any, corpus: Corpus, sequences: int = 128) -> dict[str, float]:
    """Validation cross-entropy per domain, in nats per token, float32."""
    model.eval()
    found = {}
    for domain in corpus.mixture:
        windows = corpus.validation(domain, sequences, WINDOW).to(model.device)
        parts = [
            torch.nn.functional.cross_entropy(
                model(input_ids=part[:, :-1], use_cache=False).logits.float().flatten(0, 1), part[:, 1:].flatten()
            )
            * len(part)
            for part in windows.split(8)
        ]
        found[domain] = float(sum(parts) / len(windows))
    return found


@torch.inference_mode()
def agreement(target: Any, drafter: Any, corpus: Corpus, sequences: int = 128) -> dict[str, tuple[float, float]]:
    """Per domain: acceptance at temperature 1 (mean of sum_v min(p_v, q_v)), and how often the likeliest token is the same."""
    found = {}
    for domain in corpus.mixture:
        windows = corpus.validation(domain, sequences, WINDOW).to(target.device)
        overlap, same, count = 0.0, 0.0, 0
        for part in windows.split(8):
            p = target(input_ids=part[:, :-1], use_cache=False).logits.float().softmax(-1)
            q = drafter(input_ids=part[:, :-1], use_cache=False).logits.float().softmax(-1)
            overlap += float(torch.minimum(p, q).sum(-1).mean()) * len(part)
            same += float((p.argmax(-1) == q.argmax(-1)).float().mean()) * len(part)
            count += len(part)
        found[domain] = (overlap / count, same / count)
    return found


@torch.inference_mode()
def step_costs(target: Any, drafter: Any, context: int = 200, rounds: int = 60) -> dict[str, float]:
    """Seconds of cached forward passes in plain transformers, medians of interleaved runs: `target_1`, `target_8` (rows),
    `draft_1`."""

    def stepper(model: Any, rows: int) -> Any:
        ids = torch.randint(1, model.config.vocab_size, (1, context), device=model.device)
        cache = DynamicCache(config=model.config)
        model(ids, None, None, cache, use_cache=True)  # by place: what its name is depends on transformers' version
        new = ids[:, :rows]

        def step() -> None:
            model(new, None, None, cache, use_cache=True)
            cache.crop(-rows)

        return step

    steps = {"target_1": stepper(target, 1), "target_8": stepper(target, 8), "draft_1": stepper(drafter, 1)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            # Twice: the first one brings its own weights back into the cache.
            step()
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[5:]) for name, values in times.items()}


@torch.inference_mode()
def greedy_loop(model: Any, tokenizer: Any, prompt: str, count: int = 40) -> tuple[str, bool]:
    """Greedy text behind `prompt`, and whether it loops: some phrase of 4 or more tokens directly repeated."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=count, pad_token_id=0)
    ids = output[0, inputs["input_ids"].shape[1] :].tolist()
    loops = any(
        ids[at : at + size] == ids[at + size : at + 2 * size]
        for size in range(4, count // 2 + 1)
        for at in range(len(ids) - 2 * size + 1)
    )
    return tokenizer.decode(ids), loops
