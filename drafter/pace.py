"""What a drafter has learnt of its own speed, over all its generations: what it says of itself when it opens the next one."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field

from scheduler.estimators import Smoothed

SHARE = 0.1
"""What a new observation counts."""
NEWEST = 9
"""Observations of which the middle one is believed: one slow moment among them says nothing."""
FORGIVEN_SECONDS = 30.0
"""After which a speed that nobody has measured since is believed to be twice as high: whoever was slow once, and therefore
was not asked to draft any more, would never be found to be fast again."""
LEAST_GAINED = 0.05
"""Of a step's time, by which drafting is taken to be faster than the verifier at least."""
UNKNOWN_LEAST, HIGHEST_LEAST = 0.05, 0.5
"""Least survival before anything was measured, and at most: a slow moment must not end drafting."""


class Middle:
    """The median of the newest observations; 0 while there are none."""

    __slots__ = ("_newest", "_sorted", "observed_at", "value")

    def __init__(self) -> None:
        self._newest: deque[float] = deque()
        self._sorted: list[float] = []
        self.value = 0.0
        self.observed_at = 0.0

    def observe(self, value: float, now: float) -> None:
        if not 0.0 < value < math.inf:
            return
        newest, ordered = self._newest, self._sorted
        if len(newest) == NEWEST:
            del ordered[bisect_left(ordered, newest.popleft())]
        newest.append(value)
        insort(ordered, value)
        count = len(ordered)
        middle = count // 2
        self.value = ordered[middle] if count % 2 else (ordered[middle - 1] + ordered[middle]) / 2.0
        self.observed_at = now


@dataclass(slots=True)
class Pace:
    draft_seconds: Middle = field(default_factory=Middle)
    """Per drafted token."""
    round_trip: Middle = field(default_factory=Middle)
    """To the verifier and back, without what happens there."""
    step_seconds: Smoothed = field(default_factory=lambda: Smoothed(SHARE))
    """Between two verdicts for which the verifier did not wait."""
    round_seconds: Smoothed = field(default_factory=lambda: Smoothed(SHARE))
    """Between two verdicts for which it did."""
    round_tokens: Smoothed = field(default_factory=lambda: Smoothed(SHARE))
    """What such a verdict committed."""

    def told_draft_seconds(self, now: float) -> float:
        """What to tell the verifier; 0 while it is not known."""
        drafting = self.draft_seconds
        return float(drafting.value * 0.5 ** (max(0.0, now - drafting.observed_at) / FORGIVEN_SECONDS))

    @property
    def lead(self) -> int:
        """Tokens that can be drafted while a message is on its way and its step is run; 0 while that is not known."""
        if not self.draft_seconds.value:
            return 0
        return math.ceil((self.round_trip.value + self.step_seconds.value) / self.draft_seconds.value)

    @property
    def behind(self) -> float:
        """Tokens that a verifier which decodes meanwhile, one a step, has beyond the text confirmed here when it takes in what
        is sent now; 0 while that is not known."""
        step = self.step_seconds.value
        return (self.round_trip.value + step) / step if step else 0.0

    @property
    def lag(self) -> float:
        """Guesses in a row that must be right for a branch that begins anew to overtake such a verifier (docs/algorithms.md,
        STREAM); 0 while that is not known."""
        step, draft = self.step_seconds.value, self.draft_seconds.value
        if not step or not draft:
            return 0.0
        gained, least = step - draft, LEAST_GAINED * step
        return self.behind * step / (gained if gained > least else least)

    @property
    def round_lead(self) -> int:
        """Tokens that can be drafted in the time of a round; 0 while that is not known."""
        return math.ceil(self.round_seconds.value / self.draft_seconds.value) if self.draft_seconds.value else 0

    def least_survival(self, token_cost: float) -> float:
        """What the chance that a draft is right so far must be, for one more guess to earn tokens at the rate of whole rounds
        (drafter.early_stop), and those that its verification costs everybody."""
        if not self.round_seconds.value or not self.draft_seconds.value:
            return min(UNKNOWN_LEAST + token_cost, HIGHEST_LEAST)
        rate = self.round_tokens.value / self.round_seconds.value
        return min(self.draft_seconds.value * rate + token_cost, HIGHEST_LEAST)
