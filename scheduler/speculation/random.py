"""`random`: a mode and a length drawn anew at every verdict. No one's choice for speed; the text must not notice it."""

from __future__ import annotations

import numpy as np

from scheduler.speculation.policy import Memoryless, no_argument
from scheduler.types import ItemOutcome, SessionRecord
from scheduler.view import View
from specfleet.core.types import Grant, Mode

MOST = 8
MODES = (Mode.LOCAL, Mode.STREAM, Mode.ROUND)


class Random(Memoryless):
    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def opened(self, record: SessionRecord, now: float) -> Grant:
        return self._draw()

    def decided(self, record: SessionRecord, outcome: ItemOutcome, now: float) -> Grant:
        return self._draw()

    def _draw(self) -> Grant:
        mode = MODES[self._rng.integers(len(MODES))]
        return Grant(mode, 0 if mode is Mode.LOCAL else int(self._rng.integers(1, MOST + 1)))


def build(argument: str, view: View, rng: np.random.Generator) -> Random:
    no_argument("random", argument)
    return Random(rng)
