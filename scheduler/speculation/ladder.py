"""`ladder`: lengths from a short list that depends on the batch, as production engines do (SGLang's adaptive speculation).

A running average of accepted tokens per round, looked at every few steps, says whether to go up or down a rung; larger
batches have shorter ladders, down to none. Constants as read in its code; what it leaves open is decided here: up when the
average comes within half a token of the present rung, down when it falls half a token below the next lower one.
"""

from __future__ import annotations

import numpy as np

from scheduler.speculation.policy import Memoryless, no_argument
from scheduler.types import ItemOutcome, Outcome, SessionRecord
from scheduler.view import View
from specfleet.core.types import LOCAL, Grant, Mode

LADDERS: tuple[tuple[int, tuple[int, ...]], ...] = ((64, (0,)), (32, (0, 1)), (8, (0, 1, 3)), (1, (1, 3, 5, 7)))
"""From this many sessions on, these lengths."""
NEW_SHARE = 0.2
EVERY_STEPS = 5
WARM_UP_STEPS = 10
HYSTERESIS = 0.5


class Ladder(Memoryless):
    def __init__(self, view: View) -> None:
        self._view = view
        self._accepted = 1.0
        self._length = 1
        self._steps = 0

    def opened(self, record: SessionRecord, now: float) -> Grant:
        return self._grant()

    def stepped(self, outcome: Outcome, now: float, worth: float | None = None) -> None:
        rounds = [item.accepted for item in outcome.items if item.drafted]
        if rounds:
            self._accepted += NEW_SHARE * (sum(rounds) / len(rounds) - self._accepted)
        self._steps += 1
        if self._steps >= WARM_UP_STEPS and self._steps % EVERY_STEPS == 0:
            self._length = self._rung()

    def decided(self, record: SessionRecord, outcome: ItemOutcome, now: float) -> Grant:
        return self._grant()

    def _rung(self) -> int:
        rungs = next(lengths for sessions, lengths in LADDERS if max(1, len(self._view.records)) >= sessions)
        at = max((number for number, length in enumerate(rungs) if length <= self._length), default=0)
        if at + 1 < len(rungs) and self._accepted > rungs[at] - HYSTERESIS:
            at += 1
        elif at and self._accepted < rungs[at - 1] - HYSTERESIS:
            at -= 1
        return rungs[at]

    def _grant(self) -> Grant:
        return Grant(Mode.ROUND, self._length) if self._length else LOCAL


def build(argument: str, view: View, rng: np.random.Generator) -> Ladder:
    no_argument("ladder", argument)
    return Ladder(view)
