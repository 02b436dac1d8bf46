"""How sure a draft model is: the formulas, on host and device, and through a whole engine whose drafts may be stopped."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from specfleet.core.step import Confidence, StepItem, StepResult
from specfleet.core.types import SamplingParams
from specfleet.engine.confidence import LIKELIEST, _on_device, _on_host, confidences
from specfleet.engine.engine import EngineConfig, TorchEngine
from support.pair import DRAFT

GREEDY = SamplingParams(temperature=0.0)


def in_numpy(
    logits: torch.Tensor, best: list[float], chosen: list[int], runners_up: list[int | None]
) -> list[Confidence]:
    return [_on_host(logits.numpy(), row, best[row], token, runners_up[row]) for row, token in enumerate(chosen)]


WAYS = confidences, in_numpy, _on_device


def test_the_figures_are_what_they_say() -> None:
    """Probability of the chosen, entropy, margin and spread of each row, by every way, as plain sums have it."""
    logits = torch.from_numpy(np.random.default_rng(1).normal(0.0, 3.0, (5, 300)).astype(np.float32))
    chosen = [3, 0, 299, 17, int(logits[4].argmax())]
    for measure in WAYS:
        for row, token, found in zip(
            logits.double().tolist(),
            chosen,
            measure(logits, logits.max(-1).values.tolist(), chosen, [LIKELIEST] * 5),
            strict=True,
        ):
            total = math.fsum(math.exp(x) for x in row)
            q = [math.exp(x) / total for x in row]
            entropy = -math.fsum(one * math.log(one) for one in q)
            first, second = sorted(q)[-1], sorted(q)[-2]
            spread = -math.log(math.fsum(one * one for one in q))
            figures = [found.chosen, found.entropy, found.margin, found.spread]
            assert [q[token], entropy, first - second, spread] == pytest.approx(figures, abs=1e-4)
            others = [0.0 if at == token else one for at, one in enumerate(q)]
            assert others.index(max(others)) == found.runner_up
            assert max(others) / math.fsum(others) == pytest.approx(found.runner_up_share, abs=1e-4)


def test_a_certain_row_is_no_error() -> None:
    """All weight on one token: no entropy, no spread, nothing that is not a number. On two that tie: no margin."""
    logits = torch.full((1, 50), -1e4)
    logits[0, 7] = 1e4
    for measure in WAYS:
        assert [Confidence(1.0, 0.0, 1.0, 0.0)] == measure(logits, [1e4], [7], [None])
    logits[0, 9] = 1e4
    for measure in WAYS:
        assert 0.0 == measure(logits, [1e4], [7], [9])[0].margin == measure(logits, [1e4], [3], [7])[0].margin


def test_an_engine_says_how_sure_it_is_and_stops_single_drafts() -> None:
    """Where asked for, in plain, seeded and unseeded drafts alike; a draft that is stopped leaves the others alone, and what
    it wrote so far is what it would have written."""
    engine = TorchEngine(EngineConfig(model=str(DRAFT), threads=1, kv_cache_tokens=1024, seed=1))
    try:
        kinds = (GREEDY, SamplingParams(seed=5), SamplingParams(temperature=0.7))
        items = [
            StepItem(n, [5, 9, 11], kind, want_q=not kind.match_rule, want_confidence=True)
            for n, kind in enumerate(kinds)
        ]
        for item in items:
            engine.open(item.sequence, item.tokens)
        whole = engine.extend_sync(items, 5)
        for row in whole:
            assert all(one.confidence is not None and 0.0 < one.confidence.chosen <= 1.0 for one in row)
        for item in items:
            engine.truncate(item.sequence, 0)
        heard: list[StepResult] = []
        rows = engine.extend_sync(items[:2], 5, [lambda one: bool(heard.append(one)) or len(heard) == 2, None])  # type: ignore[func-returns-value]
        assert [2, 5] == [len(row) for row in rows]
        assert [one.tokens for one in whole[0][:2]] == [one.tokens for one in rows[0]] == [one.tokens for one in heard]
        assert [one.tokens for one in whole[1]] == [one.tokens for one in rows[1]]
        assert [4, 7] == [engine.length(item.sequence) for item in items[:2]]
        assert engine.step_sync([StepItem(0, [7], GREEDY)])[0].confidence is None
    finally:
        engine.shutdown()
