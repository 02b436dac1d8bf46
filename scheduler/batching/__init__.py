"""Batching policies: which ready sessions share the next step. One module each, one entry in the table."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from scheduler.batching.fifo import Fifo
from scheduler.batching.length_aware import LengthAware
from scheduler.batching.slo import Slo
from scheduler.budget import StepBudget
from scheduler.ready import Ready
from scheduler.types import SessionRecord
from scheduler.view import View
from specfleet.core.errors import ConfigurationError


class BatchingPolicy(Protocol):
    def pause(self, ready: Ready, waiting: Collection[SessionRecord], now: float) -> float | None:
        """Until when nobody is served although somebody is ready, since a draft of those `waiting` is worth it; or None."""
        ...

    def fill(self, ready: Ready, budget: StepBudget, now: float) -> None:
        """Take from `ready`, who is never nobody, into `budget` what the next step shall do."""
        ...


POLICIES: dict[str, Callable[[View], BatchingPolicy]] = {
    "slo": Slo,
    "fifo": lambda view: Fifo(),
    "length-aware": lambda view: LengthAware(),
}


def build(name: str, view: View) -> BatchingPolicy:
    """A policy by name, as `--batching` takes it.

    Raises:
        ConfigurationError: naming the policies there are.
    """
    if name not in POLICIES:
        raise ConfigurationError(f"batching policy {name!r} is not known; choose one of {', '.join(POLICIES)}")
    return POLICIES[name](view)
