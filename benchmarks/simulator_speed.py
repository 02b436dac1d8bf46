"""How fast the simulator is: rounds per wall second, on one core.

    python benchmarks/simulator_speed.py [--seconds 20] [--large] [--profile]

Twenty verifiers and 600 drafters at constant length 4 that wait for their verdicts, the same with `fair-goodput` and 1,000
drafters that stop early and work ahead, and (--large) 200 verifiers and 10,000 drafters for two seconds; each with a drain.
A round is a verdict that came to its drafter through the production loops of both. Machines differ and are shared, so the
bare event loop is measured beside it: what a virtual clock could do with nothing on it but a timer and a task for every
message of a round. `--profile` adds where the time of a round goes, by module, from a sampling profiler.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, Report, progress, table
from simulator import clock
from simulator.baselines import policy
from simulator.document import checked
from simulator.play import Played, play

SAMPLE_SECONDS = 0.001


EDGE = {"draft_seconds": 0.005, "acceptance": 0.7, "network": {"round_trip": 0.01}}


def fleet(verifiers: int, drafters: int, seconds: float, clever: bool) -> dict[str, object]:
    """`clever`: drafters stop early and work ahead."""
    way = {"confidence": 1.5} if clever else {"ahead": False}
    return {
        "duration": seconds,
        "routing": "jsq",
        "tiers": {"edge": {"count": drafters, **EDGE, **way}},
        "verifiers": {"gpu": {"count": verifiers, "profile": "qwen3-8b-rtx4090"}},
        "workload": {"closed_loop": {}, "prompt_tokens": 64, "output_tokens": 256},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="simulated, the drain comes on top")
    parser.add_argument("--large", action="store_true", help="10,000 drafters, too")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    report = Report("simulator_speed")
    report.figures["bare_loop_rounds_per_s"] = bare_loop()
    runs = [("fixed:4", 20, 600, arguments.seconds, 12_000.0), ("fair-goodput", 20, 1000, arguments.seconds, 6_000.0)]
    if arguments.large:
        runs.append(("fixed:4", 200, 10_000, 2.0, 0.0))
    rows = [["policy", "verifiers", "drafters", "rounds", "wall s", "rounds/s", "cpu µs/round", "events/s"]]
    for name, verifiers, drafters, seconds, bar in runs:
        progress(f"{name}, {drafters} drafters")
        where: collections.Counter[str] = collections.Counter()
        with sampled(where, arguments.profile):
            began, spent = time.perf_counter(), time.process_time()
            played = one(name, verifiers, drafters, seconds)
            wall, cpu = time.perf_counter() - began, time.process_time() - spent
        rounds = played.total.verdicts
        line = f"{name}, {verifiers} verifiers, {drafters} drafters"
        report.figures[line] = {
            "rounds": rounds,
            "rounds_per_s": rounds / wall,
            "cpu_us_per_round": cpu / rounds * 1e6,
            "where_us": {part: share * cpu / rounds * 1e6 for part, share in shares(where)},
        }
        rows.append(
            [
                *(name, str(verifiers), f"{drafters:,}", f"{rounds:,}", f"{wall:.1f}", f"{rounds / wall:,.0f}"),
                *(f"{cpu / rounds * 1e6:.1f}", f"{played.events / wall:,.0f}"),
            ]
        )
        if bar:
            report.bar(f"rounds per wall second, {line}", rounds / wall, bar)
    table(rows)
    print(f"\na bare loop: {report.figures['bare_loop_rounds_per_s']:,.0f} rounds/s")
    for line, figures in report.figures.items():
        if isinstance(figures, dict) and figures["where_us"]:
            print(f"\nmicroseconds of a round, {line}")
            table([[part, f"{spent:.1f}"] for part, spent in figures["where_us"].items()])
    return report.finish()


def one(name: str, verifiers: int, drafters: int, seconds: float) -> Played:
    return play(
        checked(fleet(verifiers, drafters, seconds, name == "fair-goodput"), Path("speed.yaml")), policy(name), 0
    )


def bare_loop(rounds: int = 40_000) -> float:
    """Rounds per second of two tasks that do nothing but wait: for a draft, a message, a step and a message back."""

    async def client() -> None:
        for _ in range(rounds // 100):
            for _ in range(4):
                await clock.sleep(0.005)

    async def everybody() -> None:
        await asyncio.gather(*(client() for _ in range(100)))

    began = time.perf_counter()
    clock.run(everybody())
    return rounds / (time.perf_counter() - began)


@contextmanager
def sampled(where: collections.Counter[str], wanted: bool) -> Iterator[None]:
    """Count in which module the process is, a thousand times per second of its own time."""
    if not wanted:
        yield
        return

    def look(number: int, frame: FrameType | None) -> None:
        if frame is not None:
            where[_part(frame.f_code.co_filename)] += 1

    before = signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, SAMPLE_SECONDS, SAMPLE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def _part(file: str) -> str:
    """Module as people call it; what dataclasses generate has no file."""
    path = Path(file)
    if path.is_relative_to(ROOT) and "site-packages" not in file:
        return str(path.relative_to(ROOT))
    return "values of frozen dataclasses" if path.name == "<string>" else f"{path.parent.name}/{path.name}"


def shares(where: collections.Counter[str], most: int = 24) -> list[tuple[str, float]]:
    total = sum(where.values())
    return [(part, count / total) for part, count in where.most_common(most)]


if __name__ == "__main__":
    sys.exit(main())
