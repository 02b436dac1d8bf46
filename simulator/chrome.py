"""A run as a Chrome trace: verifiers' steps, and requests by drafter, written as they happen."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from simulator.counters import Row
from specfleet.core.chrome import ChromeWriter
from specfleet.core.protocol import Verdict

VERIFIERS, DRAFTERS = "verifiers", "drafters"


class ChromeTrace:
    """One file for one run. A context manager."""

    def __init__(self, path: Path) -> None:
        self._writer = ChromeWriter(path, (VERIFIERS, DRAFTERS))

    def __enter__(self) -> ChromeTrace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def step(self, verifier: str, start: float, seconds: float, sequences: int, tokens: int) -> None:
        about = {"sequences": sequences, "tokens": tokens}
        self._writer.span(VERIFIERS, verifier, "step", start, seconds, about)

    def request(self, row: Row) -> None:
        if row.last is None:
            return
        about = {"tier": row.tier, "verifier": row.verifier, "tokens": row.tokens, "outcome": row.outcome}
        self._writer.request(DRAFTERS, _drafter(row), row.request, "request", row.issued, row.last, about)

    def round(self, now: float, row: Row, verdict: Verdict) -> None:
        about = {"drafted": verdict.drafted, "accepted": verdict.accepted}
        self._writer.instant(DRAFTERS, _drafter(row), verdict.mode.value, now, about)

    def event(self, now: float, name: str, row: Row) -> None:
        pass


def _drafter(row: Row) -> str:
    return f"drafter {row.client}"
