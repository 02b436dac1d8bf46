"""Profiling: the design tells the four terms apart, the fit finds them, the measurement restores what it touches."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import numpy as np
import pytest

from scheduler.step_time import StepShape
from specfleet.core.errors import ConfigurationError
from specfleet.core.step import StepItem, StepResult
from specfleet.profiling.design import CHUNKS, LONG_SLOTS, MOST_NEW, SLOTS, contexts, design, of_slot
from specfleet.profiling.fit import fit, mean_error
from specfleet.profiling.measure import BATCHES, Subject, kv_cache_tokens, measure_drafting, measure_steps
from support.engine import VOCABULARY, FakeEngine

TRUTH = np.array([0.008, 6e-4, 2e-6, 3e-8])
LEVELS = contexts(2048)


def shapes(slots: int = SLOTS, levels: tuple[int, ...] = LEVELS) -> list[StepShape]:
    return [point.shape for point in design(slots, levels, np.random.default_rng(0))]


@pytest.mark.parametrize("slots", [SLOTS, 3, 1])
def test_the_fit_recovers_known_terms(slots: int) -> None:
    """Exact times give the terms they were made of, with as few slots as one."""
    profile = fit({shape: float(np.dot(shape.features, TRUTH)) for shape in shapes(slots)})
    assert TRUTH == pytest.approx(profile.coefficients, rel=1e-6)


def test_the_fit_stands_noise() -> None:
    """With 5 % noise the terms are within 25 %, and the error reported is about the noise."""
    rng = np.random.default_rng(3)
    measured = {shape: float(shape.features @ TRUTH * np.exp(rng.normal(0, 0.05))) for shape in shapes()}
    profile = fit(measured)
    assert TRUTH[:2] == pytest.approx(profile.coefficients[:2], rel=0.1)
    assert TRUTH[2] == pytest.approx(profile.coefficients[2], rel=0.25)
    assert 0.02 < mean_error(profile, measured) < 0.06


def test_no_term_is_negative() -> None:
    """Where less context takes longer, which no model explains, context costs nothing."""
    profile = fit({shape: 0.01 + 1e-3 * shape.tokens / (1 + 1e-4 * shape.cached) for shape in shapes()})
    assert min(profile.coefficients) >= 0
    assert 0 == profile.per_cached


@pytest.mark.parametrize("slots", [1, 2, 5, SLOTS])
@pytest.mark.parametrize("context_length", [10, 64, 512, 2048])
def test_every_step_fits(slots: int, context_length: int) -> None:
    """Whatever the model and the slots: no sequence beyond its slot's contexts or the model's, none twice."""
    levels = contexts(context_length)
    points = design(slots, levels, np.random.default_rng(0))
    assert len(points) == len(set(points))
    for point in points:
        assert 1 <= len(point.sequences) <= slots
        for slot, (new, context) in enumerate(point.sequences):
            assert 1 <= new <= MOST_NEW or (new in CHUNKS and slot == 0)
            assert context in of_slot(slot, levels)
            assert new + context <= context_length


def test_the_design_spans_what_is_promised() -> None:
    """1 to 16 sequences, 1 to 9 new tokens or a chunk of a prompt, alone and beside others; contexts of 32 to 1,500, of which
    only some slots hold the longest."""
    points = design(SLOTS, LEVELS, np.random.default_rng(0))
    sequences = [one for point in points for one in point.sequences]
    assert {1, 2, 4, 8, 16} <= {len(point.sequences) for point in points}
    assert {*range(1, MOST_NEW + 1), *CHUNKS} == {new for new, _ in sequences}
    for chunk in CHUNKS:
        assert {1, 8} == {len(point.sequences) for point in points if point.sequences[0][0] == chunk}
    assert (32, 1500) == (min(context for _, context in sequences), max(context for _, context in sequences))
    assert 1500 not in of_slot(LONG_SLOTS, LEVELS)


def test_a_model_without_room_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="context of 9 tokens"):
        contexts(9)


class Clocked(FakeEngine):
    """A fake engine whose steps take as long as TRUTH says, on a clock of its own."""

    def __init__(self) -> None:
        super().__init__(
            pages=kv_cache_tokens() // 16 * 3
        )  # it has no prefix cache, so it holds shared text several times
        self.now = 0.0

    async def step(self, items: Sequence[StepItem]) -> list[StepResult]:
        shape = StepShape.of((len(item.tokens), len(self.texts[item.sequence])) for item in items)
        self.now += float(np.dot(shape.features, TRUTH))
        return await super().step(items)


def subject(engine: Clocked) -> Subject:
    return Subject(engine, 2048, VOCABULARY)


def test_measuring_and_fitting_find_the_truth() -> None:
    """From an engine whose steps take known times the profile comes out as they were made."""
    engine, told = Clocked(), []
    measured = asyncio.run(measure_steps(subject(engine), 60.0, lambda: engine.now, told.append))
    profile = fit({point.shape: seconds for point, seconds in measured.items()})
    assert TRUTH == pytest.approx(profile.coefficients, rel=1e-3)
    assert 60.0 <= engine.now < 62.0
    assert told == sorted(told) and 1.0 == told[-1]
    assert {len(text) for text in engine.texts.values()} == set(LEVELS), "a sequence was not brought back"


def test_a_slow_model_is_measured_with_fewer_sequences() -> None:
    """Where prefilling alone would take more than there is time for, fewer slots are filled, and turns are still taken."""
    engine = Clocked()
    measured = asyncio.run(measure_steps(subject(engine), 1.0, lambda: engine.now, lambda _: None))
    assert max(len(point.sequences) for point in measured) < SLOTS
    assert all(math.isfinite(seconds) for seconds in measured.values())


def test_drafting_is_measured_per_token() -> None:
    """Seconds per token and sequence, for each batch."""
    engine = Clocked()
    measured = asyncio.run(measure_drafting(subject(engine), 20.0, lambda: engine.now, lambda _: None))
    assert BATCHES == tuple(measured)
    for batch, seconds in measured.items():
        # Burst of four at context 200: the mean context is 201.5.
        expected = StepShape(batch, 0, 0).features @ TRUTH + batch * (201.5 * TRUTH[2] + 202.5 * TRUTH[3])
        assert expected == pytest.approx(seconds, rel=1e-6)
