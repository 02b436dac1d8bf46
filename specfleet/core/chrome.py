"""The Chrome trace format (chrome://tracing, ui.perfetto.dev), written event by event. Times in seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from specfleet.core.errors import ConfigurationError

MICROSECONDS = 1e6


class ChromeWriter:
    """One file; a context manager. `processes` and the threads in them are rows of the picture, by name."""

    def __init__(self, path: Path, processes: Sequence[str]) -> None:
        """Raises ConfigurationError where the file cannot be written."""
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"cannot write the trace {path}: {error.strerror}; name another file") from None
        self._file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        self._first = True
        self._processes = {name: number for number, name in enumerate(processes, 1)}
        self._threads: dict[tuple[str, str], int] = {}
        for name, number in self._processes.items():
            self._put(ph="M", name="process_name", pid=number, args={"name": name})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.write("\n]}\n")
        self._file.close()

    def span(
        self, process: str, thread: str, name: str, start: float, seconds: float, about: Mapping[str, Any] | None = None
    ) -> None:
        """A bar in the thread's row; those of one thread must not overlap but by lying within each other."""
        place = self._place(process, thread)
        self._put(ph="X", name=name, **place, ts=start * MICROSECONDS, dur=seconds * MICROSECONDS, args=about or {})

    def request(
        self, process: str, thread: str, number: int, name: str, start: float, end: float, about: Mapping[str, Any]
    ) -> None:
        """A bar of its own, that may overlap others; `number` tells it from them."""
        common = {"cat": name, "id": number, **self._place(process, thread), "name": name}
        self._put(ph="b", ts=start * MICROSECONDS, **common, args=about)
        self._put(ph="e", ts=end * MICROSECONDS, **common)

    def instant(self, process: str, thread: str, name: str, at: float, about: Mapping[str, Any]) -> None:
        """A moment in the thread's row."""
        self._put(ph="i", s="t", name=name, **self._place(process, thread), ts=at * MICROSECONDS, args=about)

    def _place(self, process: str, thread: str) -> dict[str, int]:
        number, key = self._processes[process], (process, thread)
        if key not in self._threads:
            self._threads[key] = len(self._threads)
            self._put(ph="M", name="thread_name", pid=number, tid=self._threads[key], args={"name": thread})
        return {"pid": number, "tid": self._threads[key]}

    def _put(self, **event: Any) -> None:
        self._file.write(("" if self._first else ",\n") + json.dumps(event))
        self._first = False
