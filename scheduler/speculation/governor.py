"""The promise "never slower than not speculating", kept by measurement rather than by a model.

A cost model can be wrong in ways that it cannot see: drafters that share a processor with the verifier, a network that
messages fill up. So now and then, for a short window, what the policy would have chosen is set against what it avoids:
while drafting pays, everybody decodes alone for a moment; while it does not, everybody drafts for one. Whatever earned more
goes on: tokens per second, each weighted as the policy weights it, so that what serves fairness is not taken back here.
Trials become rarer while they confirm what is known, so that they cost about TRIAL_LOSS of the throughput, and are kept
apart by the number of sessions, on which the answer depends most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from scheduler.estimators import Smoothed

SHORTEST_WINDOW = 0.2
"""Seconds."""
INTERVALS_IN_WINDOW = 6.0
"""A window lasts at least so many times what a session waits for a verdict,"""
VERDICTS_IN_WINDOW = 64.0
"""and until there were so many verdicts of all sessions."""
SETTLING = 0.2
"""Share of a window that is not counted: grants change with verdicts, so the last choice still echoes."""
FIRST_TRIAL, COMMON_TRIAL, RAREST_TRIAL = 2.0, 16.0, 400.0
"""Windows between trials: at first, where they lose little, and at most."""
CLEAR = 0.1
"""Share of the rate from which on a trial's loss leaves no doubt."""
TRIAL_LOSS = 0.0025
RATE_SHARE = 0.3
"""What a window counts in a rate."""
BETTER = 1.02
"""A change of mind needs so much."""


@dataclass(slots=True)
class Crowd:
    """What is known about one size of the crowd (sessions, to powers of two)."""

    drafting: bool = True
    """What is better, as far as is known."""
    rates: dict[bool, Smoothed] = field(
        default_factory=lambda: {True: Smoothed(RATE_SHARE), False: Smoothed(RATE_SHARE)}
    )
    """Earnings per second, with drafting and without."""
    trial_at: float = -math.inf
    pause: float = FIRST_TRIAL

    def learn(self, drafted: bool, rate: float, now: float, window: float) -> None:
        """A window has ended."""
        self.rates[drafted].observe(rate)
        if drafted == self.drafting:
            return
        other, mine = self.rates[drafted].value, self.rates[self.drafting].value
        loss = 1.0 - min(other, mine) / max(other, mine)
        rarest = min(RAREST_TRIAL, max(COMMON_TRIAL, loss / TRIAL_LOSS))
        if other > BETTER * mine:
            self.drafting, self.pause = drafted, FIRST_TRIAL
        else:
            self.pause = rarest if loss > CLEAR else min(rarest, 2.0 * self.pause)
        self.trial_at = now + self.pause * window


class Governor:
    """Says whether to draft at all. Told of every step."""

    def __init__(self) -> None:
        self.drafting = True
        self._crowds: dict[int, Crowd] = {}
        self._size = 0
        """Of the present crowd: floor(log2(sessions))."""
        self._present = False
        self._interval = Smoothed(0.05)
        self._last: float | None = None
        """End of the last step, while sessions are open."""
        self._began = self._counted_from = 0.0
        self._earned = self._seconds = 0.0

    @property
    def window(self) -> float:
        intervals = max(INTERVALS_IN_WINDOW, VERDICTS_IN_WINDOW / (1 << self._size))
        return max(SHORTEST_WINDOW, intervals * self._interval.value)

    def verdict(self, seconds: float) -> None:
        """A session has waited so long for its verdict."""
        self._interval.observe(seconds)

    def idle(self) -> None:
        """Nobody is there: the time until somebody comes says nothing."""
        self._last = None
        self._present = False

    def stepped(self, earned: float, sessions: int, comparable: bool, now: float) -> None:
        """A step of `sessions` open sessions has earned so much. `comparable`: it held no prefill, and drafting is what the
        policy wants."""
        size = max(1, sessions).bit_length() - 1
        last, self._last = self._last, now
        if size != self._size or not self._present:
            self._begin(size, now)
            return
        if last is None or not comparable:
            return
        if last >= self._counted_from:
            self._earned += earned
            self._seconds += now - last
        if now - self._began >= self.window and self._earned > 0.0 and self._seconds > 0.0:
            self._end(now)

    def _begin(self, size: int, now: float) -> None:
        """Another crowd: what it is known to do best, or else what the nearest one does."""
        self._size, self._present = size, True
        if size not in self._crowds:
            near = min(self._crowds, key=lambda other: abs(other - size), default=None)
            drafting = self._crowds[near].drafting if near is not None else True
            self._crowds[size] = Crowd(drafting, trial_at=now + FIRST_TRIAL * self.window)
        self._open(self._crowds[size].drafting, now)

    def _end(self, now: float) -> None:
        crowd, window = self._crowds[self._size], now - self._began
        crowd.learn(self.drafting, self._earned / self._seconds, now, window)
        trial = self.drafting == crowd.drafting and now >= crowd.trial_at
        self._open(crowd.drafting is not trial, now)

    def _open(self, drafting: bool, now: float) -> None:
        """Begin a window. One that only goes on as the last did has nothing to settle."""
        settling = SETTLING * self.window if drafting != self.drafting else 0.0
        self.drafting = drafting
        self._began, self._counted_from = now, now + settling
        self._earned = self._seconds = 0.0
