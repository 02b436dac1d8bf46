"""Running the designed steps on an engine, in turns, and taking medians.

Timings on shared machines are noisy and drift: every shape is measured once per turn, in another order each turn, so that
whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from specfleet.core.clock import Clock
from specfleet.core.step import PAGE_SIZE, DraftEngine, StepItem
from specfleet.core.types import SamplingParams
from specfleet.profiling.design import CHUNKS, MOST_NEW, SLOTS, Point, contexts, design, of_slot

K = TypeVar("K", bound=Hashable)

GREEDY = SamplingParams(temperature=0.0)
PREFILL_SHARE = 0.4
"""Of the time there is, what filling the KV cache may take. A model too slow for that is measured with fewer sequences."""
PREFILL_CHUNK = 256
LEAST_TURNS = 3
"""Measured however little time there is; and one before them that does not count."""
MOST_TURNS = 200
BATCHES = (1, 2, 4, 8)
BURST = 4
"""Tokens drafted in a row: how a drafter asks for them."""

Progress = Callable[[float], None]
"""Told the share of the work that is done."""


@dataclass(frozen=True, slots=True)
class Subject:
    """An engine, and what it does not say of itself through its interface."""

    engine: DraftEngine
    context_length: int
    vocabulary_size: int


def kv_cache_tokens() -> int:
    """Room that the measurement needs, for a model of any context length."""
    longest = contexts(1 << 30)
    pages = sum(-(-max(of_slot(slot, longest)) // PAGE_SIZE) for slot in range(SLOTS))
    # Each context of a slot ends in a page of its own, and grows by the new tokens.
    own = sum(len(of_slot(slot, longest)) for slot in range(SLOTS)) * (2 + -(-MOST_NEW // PAGE_SIZE))
    return (pages + own) * PAGE_SIZE + max(CHUNKS)


async def measure_steps(subject: Subject, seconds: float, clock: Clock, progress: Progress) -> dict[Point, float]:
    """Median seconds of a step of each shape. Takes about `seconds`; longer where LEAST_TURNS do."""
    began, rng = clock(), np.random.default_rng(0)
    levels = contexts(subject.context_length)
    bench = _Bench(subject, clock)
    slots = 0
    while slots < SLOTS and (not slots or clock() - began < PREFILL_SHARE * seconds):
        await bench.fill(slots, of_slot(slots, levels))
        slots += 1
        progress(PREFILL_SHARE * slots / SLOTS)
    runs = {point: bench.stepper(point) for point in design(slots, levels, rng)}
    turns_left = 1.0 - PREFILL_SHARE
    return await _medians(runs, began + seconds, clock, rng, lambda share: progress(PREFILL_SHARE + turns_left * share))


async def measure_drafting(subject: Subject, seconds: float, clock: Clock, progress: Progress) -> dict[int, float]:
    """Median seconds per token and sequence with 1, 2, 4 and 8 sequences drafting together, at a usual context."""
    began, rng = clock(), np.random.default_rng(0)
    levels = contexts(subject.context_length)
    context = levels[min(1, len(levels) - 1)]
    bench = _Bench(subject, clock)
    for slot in range(max(BATCHES)):
        await bench.fill(slot, (context,))
    runs = {batch: bench.drafter(batch, context) for batch in BATCHES}
    return await _medians(runs, began + seconds, clock, rng, progress)


class _Bench:
    """Sequences of every context in every slot, to which each step returns."""

    def __init__(self, subject: Subject, clock: Clock) -> None:
        self._engine = subject.engine
        self._clock = clock
        self._vocabulary = subject.vocabulary_size
        self._rng = np.random.default_rng(1)
        self._sequences: dict[tuple[int, int], int] = {}

    async def fill(self, slot: int, levels: tuple[int, ...]) -> None:
        """The longest first: the shorter ones are its prefixes, which an engine with a prefix cache does not compute again."""
        text = self._tokens(max(levels))
        for level in sorted(levels, reverse=True):
            sequence = self._sequences[slot, level] = len(self._sequences)
            done = self._engine.open(sequence, text[:level])
            while done < level:
                chunk = text[done : min(level, done + PREFILL_CHUNK)]
                await self._engine.step([StepItem(sequence, chunk, GREEDY, sample=False)])
                done += len(chunk)

    def stepper(self, point: Point) -> Callable[[], Awaitable[float]]:
        """A step of this shape; the guesses in it are random, so nearly all are refused. More new tokens than guesses can be
        are a prompt's."""
        held = [(self._sequences[slot, context], context) for slot, (_, context) in enumerate(point.sequences)]
        items = [
            StepItem(sequence, self._tokens(new), GREEDY, draft=new - 1 if new <= MOST_NEW else 0)
            for (sequence, _), (new, _) in zip(held, point.sequences, strict=True)
        ]

        async def run() -> float:
            start = self._clock()
            await self._engine.step(items)
            taken = self._clock() - start
            self._restore(held)
            return taken

        return run

    def drafter(self, batch: int, context: int) -> Callable[[], Awaitable[float]]:
        """Seconds per token of a burst of drafting, with what drafters ask for to know when to stop."""
        held = [(self._sequences[slot, context], context) for slot in range(batch)]
        items = [StepItem(sequence, self._tokens(1), GREEDY, want_confidence=True) for sequence, _ in held]

        async def run() -> float:
            start = self._clock()
            await self._engine.extend(items, BURST)
            taken = self._clock() - start
            self._restore(held)
            return taken / BURST

        return run

    def _restore(self, held: list[tuple[int, int]]) -> None:
        for sequence, context in held:
            self._engine.truncate(sequence, context)

    def _tokens(self, count: int) -> list[int]:
        return [int(token) for token in self._rng.integers(1, self._vocabulary, count)]


async def _medians(
    runs: Mapping[K, Callable[[], Awaitable[float]]],
    until: float,
    clock: Clock,
    rng: np.random.Generator,
    progress: Progress,
) -> dict[K, float]:
    """Turns until that moment; the first one warms up and does not count."""
    keys = list(runs)
    found: dict[K, list[float]] = {key: [] for key in keys}
    start, turn = clock(), 0
    while turn <= LEAST_TURNS or (turn <= MOST_TURNS and clock() < until):
        for done, at in enumerate(rng.permutation(len(keys)), start=1):
            taken = await runs[keys[at]]()
            if turn:
                found[keys[at]].append(taken)
            needed = (turn + done / len(keys)) / (LEAST_TURNS + 1)
            progress(min(1.0, needed, (clock() - start) / max(until - start, 1e-9)))
        turn += 1
    progress(1.0)
    return {key: statistics.median(values) for key, values in found.items()}
