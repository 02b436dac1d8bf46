"""`none`: target-only. Every session stays in LOCAL. The baseline that must never be lost to."""

from __future__ import annotations

import numpy as np

from scheduler.types import ItemOutcome, SessionRecord
from specfleet.core.errors import ConfigurationError
from specfleet.core.types import LOCAL, Grant


class TargetOnly:
    def opened(self, record: SessionRecord, now: float) -> Grant:
        return LOCAL

    def decided(self, record: SessionRecord, outcome: ItemOutcome, now: float) -> Grant:
        return LOCAL


def build(argument: str, rng: np.random.Generator) -> TargetOnly:
    if argument:
        raise ConfigurationError(
            f"speculation policy 'none' takes no argument, got {argument!r}; write --speculation none"
        )
    return TargetOnly()
