"""Which steps to measure: enough shapes to tell the four terms of a step's time apart, few enough for many turns each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.step_time import StepShape
from specfleet.core.errors import ConfigurationError

SLOTS = 16
"""Most sequences in a step."""
MOST_NEW = 9
"""Most new tokens of a sequence: eight drafted ones and the one to decode from."""
CONTEXTS = (32, 200, 600, 1500)
LONG_SLOTS = 4
"""Only so many sequences reach beyond the longest but one: sums tell the terms apart, and every slot has to be prefilled."""
CHUNKS = (32, 96, 256)
"""New tokens of a prompt that is prefilled, alone and beside sequences that decode: rows by the hundred do not cost what a few
more do."""
BESIDE = 7
"""Those sequences."""
MIXED = 16
"""Steps whose sequences differ in length and new tokens, as in serving."""


@dataclass(frozen=True, slots=True)
class Point:
    """A step to measure: (new tokens, context) of each sequence. The i-th sequence is in slot i."""

    sequences: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> StepShape:
        return StepShape.of(self.sequences)


def contexts(context_length: int) -> tuple[int, ...]:
    """Those of CONTEXTS that a model of `context_length` can take, cut off at its own. Raises ConfigurationError."""
    most = context_length - MOST_NEW
    if most < 1:
        raise ConfigurationError(
            f"the model's context of {context_length} tokens is too short to profile, must be above {MOST_NEW}"
        )
    return tuple(sorted({min(context, most) for context in CONTEXTS}))


def of_slot(slot: int, levels: tuple[int, ...]) -> tuple[int, ...]:
    """The contexts that this slot holds."""
    return levels if slot < LONG_SLOTS else tuple(level for level in levels if level <= CONTEXTS[-2])


def design(slots: int, levels: tuple[int, ...], rng: np.random.Generator) -> list[Point]:
    """The steps to measure with so many slots, each once."""
    counts = sorted({count for count in (1, 2, 4, 8, SLOTS) if count < slots} | {slots})
    base = levels[min(1, len(levels) - 1)]
    uniform = [(count, new, base) for count in counts for new in (1, 3, 5, MOST_NEW)]
    for count in (1, min(LONG_SLOTS, slots), slots):
        held = of_slot(count - 1, levels)
        uniform += [(count, new, context) for context in held for new in (1, MOST_NEW)]
    points = [Point(((new, context),) * count) for count, new, context in uniform]
    points += [
        Point(((chunk, levels[0]), *((1, base),) * beside))
        for chunk in chunks(levels)
        for beside in sorted({0, min(BESIDE, slots - 1)})
    ]
    return list(dict.fromkeys((*points, *(_mixed(slots, levels, rng) for _ in range(MIXED)))))


def chunks(levels: tuple[int, ...]) -> list[int]:
    """Those of CHUNKS that fit behind the shortest of these contexts where the longest does."""
    return [chunk for chunk in CHUNKS if levels[0] + chunk <= levels[-1] + MOST_NEW]


def _mixed(slots: int, levels: tuple[int, ...], rng: np.random.Generator) -> Point:
    count = int(rng.integers(1, slots + 1))
    return Point(
        tuple((int(rng.integers(1, MOST_NEW + 1)), int(rng.choice(of_slot(slot, levels)))) for slot in range(count))
    )
