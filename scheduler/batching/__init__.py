"""Batching policies: which ready sessions share the next step. One module each, one entry in the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from scheduler.batching import fifo
from scheduler.budget import StepBudget
from scheduler.types import SessionRecord
from specfleet.core.errors import ConfigurationError


class BatchingPolicy(Protocol):
    def fill(self, ready: Sequence[SessionRecord], budget: StepBudget, now: float) -> None:
        """Take from `ready` into `budget` what the next step shall do."""
        ...


POLICIES: dict[str, Callable[[], BatchingPolicy]] = {"fifo": fifo.Fifo}


def build(name: str) -> BatchingPolicy:
    """A policy by name, as `--batching` takes it.

    Raises:
        ConfigurationError: naming the policies there are.
    """
    if name not in POLICIES:
        raise ConfigurationError(f"batching policy {name!r} is not known; choose one of {', '.join(POLICIES)}")
    return POLICIES[name]()
