"""What a drafter has learnt of its own speed, over all its generations: what it says of itself when it opens the next one."""

from __future__ import annotations

from dataclasses import dataclass, field

from scheduler.estimators import Smoothed

SHARE = 0.1
"""What a new observation counts."""


@dataclass(slots=True)
class Pace:
    draft_seconds: Smoothed = field(default_factory=lambda: Smoothed(SHARE))
    """Per drafted token."""
