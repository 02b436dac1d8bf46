"""`smartspec`: one length for everybody, the one of largest predicted goodput (arXiv 2406.14066, and its authors' code).

    G(k) = sum_i l(a_i, k) / T(k),   l = (1 - a^(k+1)) / (1 - a)

T(k) is the target's step over all sessions with k + 1 tokens each, and the drafting of k tokens before it. Decided every 20
steps by going up from k = 0 until G falls for the first time; k = 0 counts 1.1-fold, so speculation must promise 10 %.
"""

from __future__ import annotations

import numpy as np

from scheduler.estimators import expected_tokens
from scheduler.speculation.policy import LONGEST, Memoryless, no_argument
from scheduler.step_time import StepShape
from scheduler.types import ItemOutcome, Outcome, SessionRecord
from scheduler.view import View
from specfleet.core.types import LOCAL, Grant, Mode

EVERY_STEPS = 20
TARGET_ONLY_BONUS = 1.1
FIRST_LENGTH = 4


class SmartSpec(Memoryless):
    def __init__(self, view: View) -> None:
        self._view = view
        self._length = FIRST_LENGTH
        self._steps = 0

    def opened(self, record: SessionRecord, now: float) -> Grant:
        return self._grant()

    def stepped(self, outcome: Outcome, now: float, worth: float | None = None) -> None:
        self._steps += 1
        if self._steps % EVERY_STEPS == 0:
            self._length = best_length(self._view)

    def decided(self, record: SessionRecord, outcome: ItemOutcome, now: float) -> Grant:
        return self._grant()

    def _grant(self) -> Grant:
        return Grant(Mode.ROUND, self._length) if self._length else LOCAL


def goodput(view: View, sessions: list[SessionRecord], length: int) -> float:
    """G(length) over `sessions`, tokens per second; without the bonus of length 0."""
    tokens = sum(expected_tokens(record.acceptance.rate, length) for record in sessions)
    shape = StepShape.of((length + 1, record.computed) for record in sessions)
    drafting = sum(record.draft_seconds.value for record in sessions) / len(sessions)
    return tokens / (view.step_time.predict(shape) + length * drafting)


def best_length(view: View) -> int:
    """The length at which G stops rising, over the sessions that decode and can draft."""
    sessions = [record for record in view.records.values() if record.can_draft and not record.prefilling]
    if not sessions:
        return FIRST_LENGTH
    best, found = TARGET_ONLY_BONUS * goodput(view, sessions, 0), 0
    for length in range(1, LONGEST + 1):
        value = goodput(view, sessions, length)
        if value <= best and length > 1:
            break
        if value > best:
            best, found = value, length
    return found


def build(argument: str, view: View, rng: np.random.Generator) -> SmartSpec:
    no_argument("smartspec", argument)
    return SmartSpec(view)
