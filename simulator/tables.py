"""Tables of requests, rounds and events, written while a run goes on, and the manifest that says what they are of.

CSV needs nothing; Parquet needs pyarrow. Either way rows are written in batches, so that memory does not grow with them.
"""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from simulator.config import Simulation
from simulator.counters import Row
from specfleet.core.errors import ConfigurationError
from specfleet.core.protocol import Verdict

BATCH = 10_000
RUN = ("policy", "seed")
REQUEST = (
    "request", "client", "tier", "service_class", "verifier", "prompt_tokens", "output_tokens", "issued", "first", "last",
    "tokens", "cached", "verdicts", "rounds", "drafted", "verified", "accepted", "refused", "stale", "discarded", "refusals",
    "resumes", "outcome",
)  # fmt: skip
ROUND = ("time", "request", "client", "verifier", "mode", "drafted", "accepted", "tokens", "next_mode", "next_length")
EVENT = ("time", "event", "request", "client", "verifier")
COLUMNS = {"requests": REQUEST, "rounds": ROUND, "events": EVENT}


class Writer(Protocol):
    def write(self, rows: Sequence[Sequence[Any]]) -> None: ...

    def close(self) -> None: ...


class CsvWriter:
    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._file = path.with_suffix(".csv").open("w", encoding="utf-8", newline="")
        self._csv = csv.writer(self._file)
        self._csv.writerow(columns)

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        self._csv.writerows(rows)

    def close(self) -> None:
        self._file.close()


class ParquetWriter:
    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise ConfigurationError("parquet tables need pyarrow: pip install pyarrow, or write csv") from None

        kinds = {"policy": pyarrow.string(), "tier": pyarrow.string(), "service_class": pyarrow.string()}
        kinds |= dict.fromkeys(("verifier", "mode", "next_mode", "event", "outcome"), pyarrow.string())
        kinds |= dict.fromkeys(("time", "issued", "first", "last"), pyarrow.float64())
        self._schema = pyarrow.schema([(name, kinds.get(name, pyarrow.int64())) for name in columns])
        self._table = pyarrow.table
        self._file = pyarrow.parquet.ParquetWriter(path.with_suffix(".parquet"), self._schema)

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            columns = dict(zip(self._schema.names, map(list, zip(*rows, strict=True)), strict=True))
            self._file.write_table(self._table(columns, schema=self._schema))

    def close(self) -> None:
        self._file.close()


WRITERS: Mapping[str, Callable[[Path, Sequence[str]], Writer]] = {"csv": CsvWriter, "parquet": ParquetWriter}


class Tables:
    """Three files in a folder, for any number of runs: say `run` before each. A context manager."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._writers: dict[str, Writer] = {
            name: WRITERS[kind](folder / name, (*RUN, *columns)) for name, columns in COLUMNS.items()
        }
        self._rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in COLUMNS}
        self._run: tuple[str, int] = ("", 0)

    def __enter__(self) -> Tables:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, writer in self._writers.items():
            writer.write(self._rows[name])
            writer.close()

    def run(self, policy: str, seed: int) -> None:
        self._run = policy, seed

    def request(self, row: Row) -> None:
        self._add("requests", tuple(getattr(row, name) for name in REQUEST))

    def round(self, now: float, row: Row, verdict: Verdict) -> None:
        grant = verdict.grant
        self._add(
            "rounds",
            (
                *(now, row.request, row.client, row.verifier),
                *(verdict.mode.value, verdict.drafted, verdict.accepted, len(verdict.tokens)),
                *(grant.mode.value, grant.length),
            ),
        )

    def event(self, now: float, name: str, row: Row) -> None:
        self._add("events", (now, name, row.request, row.client, row.verifier))

    def step(self, verifier: str, start: float, seconds: float, sequences: int, tokens: int) -> None:
        pass

    def _add(self, table: str, row: tuple[Any, ...]) -> None:
        rows = self._rows[table]
        rows.append((*self._run, *row))
        if len(rows) >= BATCH:
            self._writers[table].write(rows)
            rows.clear()


def manifest(config: Simulation, file: Path, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What somebody needs to run it again: configuration, seeds, versions; and the figures."""
    return {
        "file": file.name,
        "configuration": config.model_dump(mode="json"),
        "seeds": list(config.seeds),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in ("specfleet", "numpy")}},
        "tables": {name: [*RUN, *columns] for name, columns in COLUMNS.items()},
        "figures": list(found),
    }


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
