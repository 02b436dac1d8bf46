"""`fixed:K`: every round drafts K tokens and the verifier waits for them. What most published systems compare with."""

from __future__ import annotations

import numpy as np

from scheduler.types import ItemOutcome, SessionRecord
from specfleet.core.errors import ConfigurationError
from specfleet.core.types import Grant, Mode

DEFAULT_LENGTH = 4
LONGEST = 32


class Fixed:
    def __init__(self, length: int) -> None:
        self._grant = Grant(Mode.ROUND, length)

    def opened(self, record: SessionRecord, now: float) -> Grant:
        return self._grant

    def decided(self, record: SessionRecord, outcome: ItemOutcome, now: float) -> Grant:
        return self._grant


def build(argument: str, rng: np.random.Generator) -> Fixed:
    length = argument or str(DEFAULT_LENGTH)
    if not length.isdecimal() or not 1 <= int(length) <= LONGEST:
        raise ConfigurationError(f"fixed:{argument} is no speculation length; write fixed:K with K from 1 to {LONGEST}")
    return Fixed(int(length))
