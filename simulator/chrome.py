"""A run as a Chrome trace (chrome://tracing, ui.perfetto.dev): verifiers' steps, and requests by drafter, written as they
happen."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from simulator.counters import Row
from specfleet.core.protocol import Verdict

VERIFIERS, DRAFTERS = 1, 2
MICROSECONDS = 1e6


class ChromeTrace:
    """One file for one run. A context manager."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        self._first = True
        self._threads: dict[str, int] = {}
        for number, name in ((VERIFIERS, "verifiers"), (DRAFTERS, "drafters")):
            self._put({"ph": "M", "name": "process_name", "pid": number, "args": {"name": name}})

    def __enter__(self) -> ChromeTrace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.write("\n]}\n")
        self._file.close()

    def step(self, verifier: str, start: float, seconds: float, sequences: int, tokens: int) -> None:
        self._put(
            {
                "ph": "X",
                "name": "step",
                "pid": VERIFIERS,
                "tid": self._thread(verifier),
                "ts": start * MICROSECONDS,
                "dur": seconds * MICROSECONDS,
                "args": {"sequences": sequences, "tokens": tokens},
            }
        )

    def request(self, row: Row) -> None:
        if row.last is None:
            return
        common = {"cat": "request", "id": row.request, "pid": DRAFTERS, "tid": row.client, "name": "request"}
        about = {"tier": row.tier, "verifier": row.verifier, "tokens": row.tokens, "outcome": row.outcome}
        self._put({"ph": "b", "ts": row.issued * MICROSECONDS, **common, "args": about})
        self._put({"ph": "e", "ts": row.last * MICROSECONDS, **common})

    def round(self, now: float, row: Row, verdict: Verdict) -> None:
        self._put(
            {
                "ph": "i",
                "s": "t",
                "name": verdict.mode.value,
                "pid": DRAFTERS,
                "tid": row.client,
                "ts": now * MICROSECONDS,
                "args": {"drafted": verdict.drafted, "accepted": verdict.accepted},
            }
        )

    def event(self, now: float, name: str, row: Row) -> None:
        pass

    def _thread(self, verifier: str) -> int:
        if verifier not in self._threads:
            number = self._threads[verifier] = len(self._threads)
            self._put({"ph": "M", "name": "thread_name", "pid": VERIFIERS, "tid": number, "args": {"name": verifier}})
        return self._threads[verifier]

    def _put(self, event: dict[str, Any]) -> None:
        self._file.write(("" if self._first else ",\n") + json.dumps(event))
        self._first = False
