"""`length-aware`: sessions of like length share a step (DSD's batching, arXiv 2511.21669), so that a long context does not
make short ones wait for its attention. The one that has waited longest sets the length; nobody starves."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from operator import attrgetter

from scheduler.batching.fifo import take_in_order
from scheduler.budget import StepBudget
from scheduler.ready import Ready
from scheduler.types import SessionRecord


class LengthAware:
    def pause(self, ready: Ready, waiting: Collection[SessionRecord], now: float) -> None:
        """Never."""

    def fill(self, ready: Iterable[SessionRecord], budget: StepBudget, now: float) -> None:
        ready = list(ready)
        first = min(ready, key=attrgetter("ready_at", "session"))
        order = sorted(
            ready, key=lambda one: (one is not first, abs(one.known - first.known), one.ready_at, one.session)
        )
        take_in_order(order, budget)
