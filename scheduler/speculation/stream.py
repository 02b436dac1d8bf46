"""`stream`, or `stream:K`: draft-ahead everywhere. The verifier decodes every step and verifies up to K tokens beside."""

from __future__ import annotations

import numpy as np

from scheduler.types import ItemOutcome, SessionRecord
from specfleet.core.errors import ConfigurationError
from specfleet.core.types import Grant, Mode

DEFAULT_LENGTH = 8
LONGEST = 32


class Stream:
    def __init__(self, length: int) -> None:
        self._grant = Grant(Mode.STREAM, length)

    def opened(self, record: SessionRecord, now: float) -> Grant:
        return self._grant

    def decided(self, record: SessionRecord, outcome: ItemOutcome, now: float) -> Grant:
        return self._grant


def build(argument: str, rng: np.random.Generator) -> Stream:
    length = argument or str(DEFAULT_LENGTH)
    if not length.isdecimal() or not 1 <= int(length) <= LONGEST:
        raise ConfigurationError(
            f"stream:{argument} is no speculation length; write stream:K with K from 1 to {LONGEST}"
        )
    return Stream(int(length))
