"""`fifo`: first come, first served, by the time since which a session waits. Prefill takes what verification leaves, and a
quarter of the step at least, so that neither starves the other; what prefill leaves of that goes to verification again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from operator import attrgetter

from scheduler.budget import StepBudget
from scheduler.ready import Ready
from scheduler.types import SessionRecord

PREFILL_SHARE = 4
"""One in so many of a step's tokens is kept for prefill while somebody waits for it."""


class Fifo:
    def pause(self, ready: Ready, waiting: Collection[SessionRecord], now: float) -> None:
        """Never."""

    def fill(self, ready: Iterable[SessionRecord], budget: StepBudget, now: float) -> None:
        take_in_order(sorted(ready, key=attrgetter("ready_at", "session")), budget)


def take_in_order(waiting: Sequence[SessionRecord], budget: StepBudget) -> None:
    """Verification first, prefill in what it leaves and in what is kept for it, then what that leaves."""
    prefills = [record for record in waiting if record.prefilling]
    kept = -(-budget.tokens // PREFILL_SHARE) if prefills else 0
    left = [record for record in waiting if not record.prefilling and not budget.verify(record, kept)]
    for record in prefills:
        budget.prefill(record)
    for record in left:
        budget.verify(record)
