"""What a speculation policy is: it is told of openings, steps and closings, and answers with grants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from scheduler.types import ItemOutcome, Outcome, SessionRecord
from specfleet.core.errors import ConfigurationError
from specfleet.core.types import LOCAL, Grant

LONGEST = 32
"""Longest grant any policy gives."""


class SpeculationPolicy(Protocol):
    def opened(self, record: SessionRecord, now: float) -> Grant:
        """The first grant of a session that can draft."""
        ...

    def stepped(self, outcome: Outcome, now: float, worth: float | None = None) -> None:
        """A step has ended, and records know of it; its verdicts are decided next. `worth` is that of all its tokens, by
        what the policy said of their sessions; None for a step that prefilled, which is not like others."""
        ...

    def decided(self, record: SessionRecord, outcome: ItemOutcome, now: float) -> Grant:
        """The grant after a verdict; the record's estimates know of it already."""
        ...

    def decided_all(self, records: Sequence[SessionRecord], outcome: Outcome, now: float) -> Sequence[Grant]:
        """The same for all of `records`, which got a verdict in this step, in order. Those that cannot draft stay in LOCAL."""
        ...

    def closed(self, record: SessionRecord) -> None:
        """A session is gone."""
        ...


class OneByOne(ABC):
    """Base of policies that decide for each session apart."""

    @abstractmethod
    def decided(self, record: SessionRecord, outcome: ItemOutcome, now: float) -> Grant: ...

    def decided_all(self, records: Sequence[SessionRecord], outcome: Outcome, now: float) -> Sequence[Grant]:
        items = {item.session: item for item in outcome.items}
        return [self.decided(record, items[record.session], now) if record.can_draft else LOCAL for record in records]


class Memoryless(OneByOne):
    """Base of those that remember nothing of sessions."""

    def stepped(self, outcome: Outcome, now: float, worth: float | None = None) -> None:
        pass

    def closed(self, record: SessionRecord) -> None:
        pass


class Constant(Memoryless):
    """The same grant for everybody, always."""

    def __init__(self, grant: Grant) -> None:
        self._grant = grant

    def opened(self, record: SessionRecord, now: float) -> Grant:
        return self._grant

    def decided(self, record: SessionRecord, outcome: ItemOutcome, now: float) -> Grant:
        return self._grant


def length_of(name: str, argument: str, default: int, longest: int = LONGEST) -> int:
    """The K of `name:K`. Raises ConfigurationError."""
    text = argument or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= longest:
        raise ConfigurationError(f"{name}:{argument} is not understood; write {name}:K with K from 1 to {longest}")
    return int(text)


def no_argument(name: str, argument: str) -> None:
    """Raises ConfigurationError if there is one."""
    if argument:
        raise ConfigurationError(f"speculation policy {name!r} takes no argument, got {argument!r}; write {name}")
