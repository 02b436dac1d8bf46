"""Who looks on: the verifiers' counters, and where requests, rounds, steps and events are written as they happen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from simulator.counters import Row, Tally
from specfleet.core.clock import Clock
from specfleet.core.protocol import Verdict
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
    """Several at a time; nobody is asked who keeps nothing."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.request = _each([sink.request for sink in sinks if not _idle(sink, "request")])
        self.round = _each([sink.round for sink in sinks if not _idle(sink, "round")])
        self.event = _each([sink.event for sink in sinks if not _idle(sink, "event")])
        self.step = _each([sink.step for sink in sinks if not _idle(sink, "step")])


def _idle(sink: Sink, name: str) -> bool:
    return getattr(type(sink), name) is getattr(Nowhere, name)


def _each(takers: Sequence[Callable[..., None]]) -> Callable[..., None]:
    if len(takers) < 2:
        return takers[0] if takers else _nobody

    def tell(*what: Any) -> None:
        for taker in takers:
            taker(*what)

    return tell


def _nobody(*what: Any) -> None:
    pass


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

    def verdict(self, service_class: str, verdict: Verdict, wait: float) -> None:
        self.committed += len(verdict.tokens)
        self.verified += verdict.drafted + verdict.alternatives
        self.accepted += verdict.accepted + verdict.alternative_accepted
