"""The engine against the stock model: the same trace through both, logits compared.

The trace appends, rolls back, forks by prefix, closes, at random, several sequences of mixed shapes in a step; the stock
model sees each whole sequence at once, without a cache.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from specfleet.core.step import StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine import EngineConfig, TorchEngine
from specfleet.engine.attention import AttentionContext
from specfleet.engine.testing import FAMILIES, VOCABULARY, save_tiny_model, stock_logits, stock_model

GREEDY = SamplingParams(temperature=0)
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Models this small are slower on several threads, and by far where the cores are shared."""
    torch.set_num_threads(1)


class Trace:
    """A random walk over an engine's operations, with the true tokens of each sequence kept beside it."""

    def __init__(self, folder: Path, seed: int, kv_cache_tokens: int = 1024, deterministic: bool = False) -> None:
        self.random = np.random.default_rng(seed)
        config = EngineConfig(model=str(folder), kv_cache_tokens=kv_cache_tokens, deterministic=deterministic)
        self.engine = TorchEngine(config)
        self.stock = stock_model(folder)
        self.truth: dict[int, list[int]] = {}
        self.waiting: dict[int, list[int]] = {}
        self.texts: list[list[int]] = []
        self.next_id = 0
        self.compared = 0

    def tokens(self, count: int) -> list[int]:
        return self.random.integers(0, VOCABULARY, count).tolist()

    def open(self) -> None:
        """A new sequence, most of the time with the beginning of another one's text, open or closed."""
        prompt = self.tokens(int(self.random.integers(1, 50)))
        others = [*self.truth.values(), *self.texts[-3:]]
        if others and self.random.random() < 0.7:
            other = others[self.random.integers(len(others))]
            prompt = other[: int(self.random.integers(0, len(other) + 1))] + prompt
        found = self.engine.open(self.next_id, prompt)
        assert found < len(prompt)
        self.truth[self.next_id] = prompt[:found]
        self.waiting[self.next_id] = prompt[found:]
        self.next_id += 1

    def close(self) -> None:
        sequence = int(self.random.choice(list(self.truth)))
        self.engine.close(sequence)
        self.texts.append(self.truth.pop(sequence))
        del self.waiting[sequence]

    def roll_back(self) -> None:
        sequence = int(self.random.choice(list(self.truth)))
        most = len(self.truth[sequence])
        length = int(self.random.integers(max(0, most - 30), most + 1))
        self.engine.truncate(sequence, length)
        del self.truth[sequence][length:]
        self.waiting[sequence] = []

    def step(self) -> None:
        """Feed some sequences: a part of a prompt, or a few tokens of which some trailing ones want logits."""
        ids = [s for s in self.truth if self.random.random() < 0.8]
        items = []
        for sequence in ids:
            tokens = self.waiting[sequence][: int(self.random.integers(1, 40))] or self.tokens(
                int(self.random.integers(1, 8))
            )
            draft = int(self.random.integers(0, len(tokens)))
            items.append(StepItem(sequence, tokens, GREEDY, draft=draft))
            del self.waiting[sequence][: len(tokens)]
        if not items:
            return
        logits = self.engine.forward(items)
        row = 0
        for item in items:
            self.truth[item.sequence] += item.tokens
            expected = stock_logits(self.stock, self.truth[item.sequence])[-item.draft - 1 :]
            found = logits[row : row + item.draft + 1]
            np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=TOLERANCE)
            row += item.draft + 1
            self.compared += item.draft + 1

    def walk(self, steps: int) -> None:
        for _ in range(steps):
            kind = self.random.choice(["open", "close", "roll_back", "step"], p=[0.25, 0.15, 0.15, 0.45])
            if kind == "open" and len(self.truth) < 6:
                self.open()
            elif self.truth and kind != "open":
                {"close": self.close, "roll_back": self.roll_back, "step": self.step}[kind]()
            self.engine.check_integrity()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_the_stock_model_are_reproduced(family: str, tmp_path: Path) -> None:
    """Whatever is appended, rolled back, forked or closed in between, each wanted row equals the stock model's to 1e-5."""
    trace = Trace(save_tiny_model(tmp_path, family), seed=len(family))

    trace.walk(80)

    assert trace.compared > 100
    assert trace.engine.page_counters.prefix_hits > 0


def test_logits_survive_eviction_and_copied_pages(tmp_path: Path) -> None:
    """In a pool so small that cached pages are taken again and again, nobody reads another's tokens."""
    trace = Trace(save_tiny_model(tmp_path, "llama"), seed=5, kv_cache_tokens=16 * 16)
    engine = trace.engine
    for _ in range(10):
        first = trace.tokens(64)
        second = first[:60] + trace.tokens(10)
        assert engine.open(1, first) == 0
        trace.truth, trace.waiting = {1: []}, {1: list(first)}
        while trace.waiting[1]:
            trace.step()
        engine.truncate(1, 63)  # what was appended for good is offered to the cache when the next step begins
        engine.forward([StepItem(1, first[63:], GREEDY)])
        assert engine.open(2, second) == 48
        engine.truncate(2, 40)
        trace.truth, trace.waiting = {1: list(first), 2: second[:40]}, {1: [], 2: trace.tokens(20)}
        for _ in range(4):
            trace.step()
            engine.check_integrity()
        trace.close()
        trace.close()

    assert engine.page_counters.evictions > 0
    assert engine.page_counters.copies > 0


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_passes_of_one_shape_compute_the_same(family: str, tmp_path: Path) -> None:
    """With `deterministic`, the same random trace holds, and the model only ever sees 64 tokens at a time."""
    trace = Trace(save_tiny_model(tmp_path, family), seed=3, deterministic=True)
    worker, seen = trace.engine._worker, set()
    run = worker.model.run

    def watched(context: AttentionContext) -> torch.Tensor:
        seen.add(context.batch.tokens)
        return run(context)

    worker.model = replace(worker.model, run=watched)
    trace.walk(60)

    assert trace.compared > 100
    assert seen == {64}


def test_one_step_of_mixed_shapes_equals_one_sequence_at_a_time(tmp_path: Path) -> None:
    """A long prefill chunk, a decode, a verification and a chunk without logits share a step and change nothing."""
    folder = save_tiny_model(tmp_path, "qwen3")
    random = np.random.default_rng(1)
    prompts = [random.integers(0, VOCABULARY, n).tolist() for n in (3, 90, 33, 200)]
    more = [random.integers(0, VOCABULARY, n).tolist() for n in (1, 5, 17, 60)]
    together, alone = (TorchEngine(EngineConfig(model=str(folder))) for _ in range(2))
    for engine in (together, alone):
        for i, prompt in enumerate(prompts):
            engine.open(i, prompt)
            engine.forward([StepItem(i, prompt, GREEDY, sample=False)])
    items = [
        StepItem(0, more[0], GREEDY),
        StepItem(1, more[1], GREEDY, draft=4),
        StepItem(2, more[2], GREEDY, sample=False),
        StepItem(3, more[3], GREEDY),
    ]

    found = together.forward(items).numpy()

    expected = np.concatenate([alone.forward([item]).numpy() for item in items])
    assert found.shape == (7, VOCABULARY)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
