"""What a drafter has learnt of its own speed, over all its generations: what it says of itself when it opens the next one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from scheduler.estimators import Smoothed

SHARE = 0.1
"""What a new observation counts."""


@dataclass(slots=True)
class Pace:
    draft_seconds: Smoothed = field(default_factory=lambda: Smoothed(SHARE))
    """Per drafted token."""
    round_trip: Smoothed = field(default_factory=lambda: Smoothed(SHARE))
    """To the verifier and back, without what happens there."""
    step_seconds: Smoothed = field(default_factory=lambda: Smoothed(SHARE))
    """Between two verdicts for which the verifier did not wait."""

    @property
    def lead(self) -> int:
        """Tokens that can be drafted while a message is on its way and its step is run; 0 while that is not known."""
        if not self.draft_seconds.value:
            return 0
        return math.ceil((self.round_trip.value + self.step_seconds.value) / self.draft_seconds.value)
