"""Speculation policies: the mode and length a session is granted next. One module each, one entry in the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from scheduler.speculation import fixed, none, random, stream
from scheduler.types import ItemOutcome, SessionRecord
from specfleet.core.errors import ConfigurationError
from specfleet.core.types import Grant

MAX_LENGTH = 32
"""Longest grant any policy gives."""


class SpeculationPolicy(Protocol):
    def opened(self, record: SessionRecord, now: float) -> Grant:
        """The first grant of a session that can draft."""
        ...

    def decided(self, record: SessionRecord, outcome: ItemOutcome, now: float) -> Grant:
        """The grant after a verdict."""
        ...


POLICIES: dict[str, Callable[[str, np.random.Generator], SpeculationPolicy]] = {
    "none": none.build,
    "fixed": fixed.build,
    "stream": stream.build,
    "random": random.build,
}


def build(name: str, rng: np.random.Generator) -> SpeculationPolicy:
    """A policy from `NAME` or `NAME:ARGUMENT`, as `--speculation` takes it.

    Raises:
        ConfigurationError: naming the policies there are.
    """
    kind, _, argument = name.partition(":")
    if kind not in POLICIES:
        raise ConfigurationError(f"speculation policy {name!r} is not known; choose one of {', '.join(POLICIES)}")
    return POLICIES[kind](argument, rng)
