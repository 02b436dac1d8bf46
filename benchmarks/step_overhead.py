"""Time of a verifier step outside the model's forward pass, in the production batch loop.

    python benchmarks/step_overhead.py [--steps 300] [--models FOLDER]

The loop runs in this process with the real engine and sessions whose drafts are always there, so that steps follow each
other without waiting. A step lasts from the plan to the last verdict handed out; the forward pass is timed by the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import MODELS, Report, table
from scheduler import Plan, Scheduler, SchedulerConfig
from specfleet.core.protocol import Draft, Open
from specfleet.core.types import SamplingParams
from specfleet.engine import EngineConfig, TorchEngine
from verifier.loop import BatchLoop
from verifier.session import Session

CONTEXT = 200
BATCHES = (1, 4, 8, 16)


class Timed(Scheduler):
    """Times steps: from a plan that has items to the next call of `plan`, which follows the last verdict at once."""

    def __init__(self, config: SchedulerConfig, engine: TorchEngine) -> None:
        super().__init__(config)
        self.steps: list[tuple[float, float]] = []
        """Seconds of each step, and of its part outside the forward pass."""
        self._engine = engine
        self._began: tuple[float, float] | None = None

    def plan(self, now: float, free_pages: int) -> Plan:
        clock, forward = time.perf_counter(), self._engine.counters.forward_seconds
        if self._began is not None:
            seconds = clock - self._began[0]
            self.steps.append((seconds, seconds - (forward - self._began[1])))
        plan = super().plan(now, free_pages)
        self._began = (clock, forward) if plan.items else None
        return plan


async def _run(engine: TorchEngine, streams: int, draft: int, steps: int) -> tuple[float, float]:
    """Median seconds of a step and of the part outside the forward pass."""
    policy = f"fixed:{draft}" if draft else "none"
    scheduler = Timed(SchedulerConfig(speculation=policy, draft_wait_seconds=60.0), engine)
    loop = BatchLoop(engine, scheduler, time.monotonic)
    sampling = SamplingParams(max_tokens=1_000_000, temperature=0.0)
    sessions = []
    for number in range(1, streams + 1):
        prompt = tuple((number * 131 + at * 7) % 4000 + 1 for at in range(CONTEXT))
        session = Session(number, Open(prompt=prompt, sampling=sampling, can_draft=bool(draft)), (), 2000)
        sessions.append(session)
        loop.submit(session)
    task = asyncio.create_task(loop.run())
    for _ in range(steps):
        await asyncio.gather(*(session.outbox.get() for session in sessions))
        for session in sessions if draft else ():
            known = len(session.tokens)
            guess = tuple((known * 31 + at) % 4000 for at in range(draft))
            loop.offer(session, Draft(position=known, tokens=guess, confirmed=known, last=True))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for session in sessions:
        engine.close(session.number)
    # The first ones are prefill.
    seconds, outside = zip(*scheduler.steps[10:], strict=True)
    return statistics.median(seconds), statistics.median(outside)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--models", type=Path, default=MODELS)
    arguments = parser.parse_args()
    report = Report("step_overhead")
    engine = TorchEngine(
        EngineConfig(model=str(arguments.models / "tiny-target"), dtype="float32", kv_cache_tokens=65_536)
    )
    rows = [["batch", "drafted", "step ms", "outside forward ms", "share"]]
    for streams in BATCHES:
        for draft in (0, 4):
            step, outside = asyncio.run(_run(engine, streams, draft, arguments.steps))
            rows.append(
                [str(streams), str(draft), f"{step * 1e3:.2f}", f"{outside * 1e3:.2f}", f"{outside / step:.1%}"]
            )
            report.figures[f"{streams}x{draft}"] = {"step_s": step, "outside_s": outside}
            if streams == 8:
                report.bar(
                    f"share outside the forward, batch of 8, {draft} drafted", outside / step, 0.15, at_most=True
                )
    table(rows)
    engine.shutdown()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
