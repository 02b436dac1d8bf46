"""Who looks on: the verifiers' counters, and where requests, rounds, steps and events are written as they happen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from simulator.counters import Row, Tally
from specfleet.core.clock import Clock
from specfleet.core.protocol import Verdict
from specfleet.core.types import Mode
from verifier.observer import Silent


class Sink(Protocol):
    """Takes what tables, traces and plots are made of."""

    def request(self, row: Row) -> None: ...

    def round(self, now: float, row: Row, verdict: Verdict) -> None: ...

    def event(self, now: float, name: str, row: Row) -> None: ...

    def step(self, verifier: str, start: float, seconds: float, sequences: int, tokens: int) -> None: ...


class Nowhere:
    """Keeps nothing."""

    def request(self, row: Row) -> None: ...

    def round(self, now: float, row: Row, verdict: Verdict) -> None: ...

    def event(self, now: float, name: str, row: Row) -> None: ...

    def step(self, verifier: str, start: float, seconds: float, sequences: int, tokens: int) -> None: ...


class Both:
    """Several at a time."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def request(self, row: Row) -> None:
        for sink in self._sinks:
            sink.request(row)

    def round(self, now: float, row: Row, verdict: Verdict) -> None:
        for sink in self._sinks:
            sink.round(now, row, verdict)

    def event(self, now: float, name: str, row: Row) -> None:
        for sink in self._sinks:
            sink.event(now, name, row)

    def step(self, verifier: str, start: float, seconds: float, sequences: int, tokens: int) -> None:
        for sink in self._sinks:
            sink.step(verifier, start, seconds, sequences, tokens)


class Watch(Silent):
    """A verifier's observer. It counts verdicts a second time, independently of those who receive them."""

    def __init__(self, name: str, tally: Tally, sink: Sink, clock: Clock) -> None:
        self.committed = self.verified = self.accepted = 0
        self._name = name
        self._tally = tally
        self._sink = sink
        self._clock = clock

    def step(self, seconds: float, predicted: float, sequences: int, tokens: int) -> None:
        tally = self._tally
        tally.steps += 1
        tally.step_sequences += sequences
        tally.busy_seconds += seconds
        tally.step_seconds.add(seconds)
        self._sink.step(self._name, self._clock() - seconds, seconds, sequences, tokens)

    def verdict(self, service_class: str, mode: Mode, drafted: int, accepted: int, committed: int, wait: float) -> None:
        self.committed += committed
        self.verified += drafted
        self.accepted += accepted
