"""What every benchmark shares: interleaved medians, bars, the machine, a table for people and one JSON line for machines.

Timings on shared machines are noisy: what is compared is measured in turns within one run, medians are taken, and bars are
ratios. The last line of every script is
`{"benchmark": …, "machine": …, "commit": …, "figures": …, "bars": [{"line", "figure", "bar", "ok"}]}`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specfleet.native import enable

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"
PROMPTS = (
    "Once upon a time, there was a little fox who",
    "The old clock in the hall struck nine, and",
    '"Where are you going?" asked the boy.',
    "Far away, beyond the hills, there lived",
    "The captain looked out over the grey sea and",
    "Question: Anna has 12 apples and gives 5 of them away. How many are left?\nAnswer:",
    "Question: A train goes 60 miles in one hour. How far does it go in three hours?\nAnswer:",
    "def read_lines(path):\n",
)
"""Our own, from the kinds of text that the tiny pair was trained on."""
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
"""Those that programs can be kept on; not every system lets them choose."""


@dataclass
class Report:
    """Figures and bars of one script."""

    benchmark: str
    figures: dict[str, Any] = field(default_factory=dict)
    bars: list[dict[str, Any]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)

    def bar(self, line: str, figure: float, bar: float, at_most: bool = False, ratio: bool = True) -> None:
        """`figure` must be at least `bar` (at most, where less is better). `ratio`: other machines have it, too."""
        ok = figure <= bar if at_most else figure >= bar
        self.bars.append({"line": line, "figure": figure, "bar": bar, "ok": ok, "at_most": at_most, "ratio": ratio})

    def table(self, title: str, rows: Sequence[Sequence[str]]) -> None:
        """Print a table, and keep it for docs/results.md (run.py)."""
        print(f"\n{title}")
        table(rows)
        self.tables.append({"title": title, "rows": rows})

    def finish(self) -> int:
        """Print the bars and the JSON line; returns the exit code: 1 if a bar is missed."""
        print()
        for row in self.bars:
            print(f"{'ok    ' if row['ok'] else 'MISSED'}  {row['line']}: {row['figure']:.3g} (bar {row['bar']:g})")
        print(json.dumps({"machine": machine(), "commit": commit(), **asdict(self)}))
        return 0 if all(row["ok"] for row in self.bars) else 1


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started meanwhile runs on this core, where there is more than one: fleets are of machines, and on shared cores
    a drafter takes the time of the verifier, whose steps then say more about their neighbours than about themselves."""
    if not CORES:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CORES[core % len(CORES)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def interleaved(runs: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Each run in turn, `rounds` times over, what it returns by name; the first `warmup` rounds do not count."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    began = time.monotonic()
    for number in range(rounds + warmup):
        for name, run in runs.items():
            value = run()
            if number >= warmup:
                found[name].append(value)
        progress(f"round {number + 1} of {rounds + warmup}, {time.monotonic() - began:.0f} s")
    progress("")
    return found


def medians(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(found) for name, found in values.items()}


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """A run that returns its seconds."""

    def once() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return once


def table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need; the first left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            row[0].ljust(widths[0])
            + "".join(f"  {cell.rjust(width)}" for cell, width in zip(row[1:], widths[1:], strict=True))
        )


def progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text:60}\r")
        sys.stderr.flush()


def machine() -> dict[str, Any]:
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "native": enable(),
    }


def commit() -> str:
    if shutil.which("git") is None:
        return ""
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return result.stdout.strip()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
