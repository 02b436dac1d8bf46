"""How a step's cost grows: with sequences, with tokens, with context, and with sessions that are long over.

    python benchmarks/growth.py [--rounds 12] [--sessions 1500] [--models FOLDER]

The first three vary one thing each on the real engine, in turns, and fit seconds = fixed + slope x. Errors are relative: a
step of 1 ms counts as much as one of 100. The last lets sessions come and go through the production batch loop, sixteen at a
time, each with a prompt of its own so that the prefix cache fills and evicts; what a step takes outside the forward pass must
not depend on how many went before.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import MODELS, Report, interleaved, medians, progress
from benchmarks.step_overhead import Timed
from scheduler import SchedulerConfig
from specfleet.core.protocol import Finished, Open
from specfleet.core.step import StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine import EngineConfig, TorchEngine
from verifier.loop import BatchLoop
from verifier.session import Session

GREEDY = SamplingParams(temperature=0.0)
SWEEPS = {
    "sequences": (1, 2, 4, 8, 16, 24, 32, 48, 64),
    "tokens": (1, 8, 16, 32, 64, 128, 192, 256, 384, 512),
    "context": (128, 256, 512, 768, 1024, 1536, 2016),
}
"""What varies: sequences of one token at context 128; new tokens of one sequence behind 128; context of four sequences with
one token each."""
CONTEXT, FOUR = 128, 4
FINISHED_BAR = 1.15
"""The last fifth of sessions against the first, outside the forward pass."""


@dataclass(frozen=True, slots=True)
class Fit:
    """seconds = fixed + slope x, by least squares of relative errors."""

    fixed: float
    slope: float
    r2: float
    """Of log(predicted) against log(measured)."""
    worst: float
    """Largest |predicted / measured - 1|."""


def fitted(x: Sequence[float], seconds: Sequence[float]) -> Fit:
    at, measured = np.array(x, dtype=float), np.array(seconds)
    design = np.stack([1.0 / measured, at / measured], axis=1)
    (fixed, slope), *_ = np.linalg.lstsq(design, np.ones(len(at)), rcond=None)
    predicted = np.maximum(fixed + slope * at, 1e-9)
    errors = np.log(predicted / measured)
    spread = np.log(measured) - np.log(measured).mean()
    r2 = 1.0 - float((errors**2).sum() / (spread**2).sum())
    return Fit(float(fixed), float(slope), r2, float(np.abs(predicted / measured - 1.0).max()))


class Sequences:
    """An engine whose sequences return to the length that a run finds them at."""

    def __init__(self, folder: Path) -> None:
        self.engine = TorchEngine(EngineConfig(model=str(folder), dtype="float32", kv_cache_tokens=49_152, threads=1))
        self._numbers = 0

    def opened(self, context: int) -> int:
        """A new sequence of so many computed tokens."""
        self._numbers += 1
        tokens = [(self._numbers * 131 + at * 7) % 4000 + 1 for at in range(context)]
        self.engine.open(self._numbers, [0])
        for at in range(0, context, 256):
            self.engine.step_sync([StepItem(self._numbers, tokens[at : at + 256], GREEDY, sample=False)])
        return self._numbers

    def step(self, sequences: Sequence[int], context: int, tokens: int = 1) -> Callable[[], float]:
        items = [StepItem(one, list(range(5, 5 + tokens)), GREEDY) for one in sequences]

        def run() -> float:
            start = time.perf_counter()
            self.engine.step_sync(items)
            seconds = time.perf_counter() - start
            for one in sequences:
                self.engine.truncate(one, context)
            return seconds

        return run


def sweep(report: Report, name: str, folder: Path, rounds: int) -> list[str]:
    """One row of the table; figures and bars into the report."""
    own, points = Sequences(folder), SWEEPS[name]
    if name == "sequences":
        all_of_them = [own.opened(CONTEXT) for _ in range(max(points))]
        runs = {str(n): own.step(all_of_them[:n], CONTEXT) for n in points}
    elif name == "tokens":
        one = own.opened(CONTEXT)
        runs = {str(n): own.step([one], CONTEXT, n) for n in points}
    else:
        runs = {str(n): own.step([own.opened(n) for _ in range(FOUR)], n) for n in points}
    progress(name)
    found = medians(interleaved(runs, rounds, warmup=2))
    own.engine.shutdown()
    fit = fitted(points, list(found.values()))
    report.figures[name] = {
        "seconds": found,
        "fixed_s": fit.fixed,
        "slope_s": fit.slope,
        "r2": fit.r2,
        "worst": fit.worst,
    }
    report.bar(f"linear in {name}: R2", fit.r2, 0.95)
    first, last = found[str(points[0])], found[str(points[-1])]
    return [
        f"{name} {points[0]} to {points[-1]}",
        f"{first * 1e3:.2f} to {last * 1e3:.2f}",
        f"{fit.fixed * 1e3:.2f}",
        f"{fit.slope * 1e6:.1f}",
        f"{fit.r2:.3f}",
        f"{fit.worst:.1%}",
    ]


async def finished(folder: Path, sessions: int) -> list[float]:
    """Seconds outside the forward pass of each step while sessions come and go."""
    engine = TorchEngine(EngineConfig(model=str(folder), dtype="float32", kv_cache_tokens=8_192, threads=1))
    scheduler = Timed(SchedulerConfig(speculation="none"), engine)
    loop = BatchLoop(engine, scheduler, time.monotonic)
    task = asyncio.create_task(loop.run())
    sampling = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)

    async def lane(first: int) -> None:
        for number in range(first, sessions, 16):
            prompt = tuple((number * 7919 + at * 31) % 4000 + 1 for at in range(40))
            session = Session(number + 1, Open(prompt=prompt, sampling=sampling, can_draft=False), (), 2000)
            loop.submit(session)
            while not isinstance(await session.outbox.get(), Finished):
                pass

    await asyncio.gather(*(lane(first) for first in range(16)))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if loop.sessions or len(scheduler) or engine.used_pages:
        raise SystemExit(
            f"{loop.sessions} sessions, {len(scheduler)} records and {engine.used_pages} pages are left over"
        )
    engine.shutdown()
    return [outside for _, outside in scheduler.steps]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--sessions", type=int, default=1500)
    parser.add_argument("--models", type=Path, default=MODELS)
    arguments = parser.parse_args()
    if arguments.sessions < 200:
        parser.error(
            f"--sessions is {arguments.sessions}, must be at least 200, for their first and last fifth to differ"
        )
    report = Report("growth")
    folder = arguments.models / "tiny-target"
    rows = [["step against", "ms", "fixed ms", "slope us", "R2", "worst error"]]
    rows += [sweep(report, name, folder, arguments.rounds) for name in SWEEPS]
    report.table("Seconds of a step = fixed + slope x, fitted to medians by relative errors.", rows)
    outside = asyncio.run(finished(folder, arguments.sessions))[20:]
    fifth = len(outside) // 5
    early, late = statistics.median(outside[:fifth]), statistics.median(outside[-fifth:])
    print(
        f"\noutside the forward pass, {len(outside)} steps of {arguments.sessions} sessions that came and went: "
        f"{early * 1e3:.2f} ms in the first fifth, {late * 1e3:.2f} ms in the last"
    )
    report.figures["finished"] = {"sessions": arguments.sessions, "early_s": early, "late_s": late}
    report.bar("a step after all those sessions, against before", late / early, FINISHED_BAR, at_most=True)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
