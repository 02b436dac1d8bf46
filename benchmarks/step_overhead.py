"""What the verifier does besides the model's forward pass: in a step, and in Python for each round.

    python benchmarks/step_overhead.py [--steps 300] [--rounds 200] [--profile 25] [--models FOLDER]

Steps: the production loop in this process with the real engine, and sessions whose drafts are always there, so that steps
follow each other without waiting. A step lasts from the plan to the last verdict handed out; the forward pass is timed by the
engine. The parts are the tracer's (specfleet.core.trace), and what tracing costs is measured in turns with steps without it.

Rounds: the production verifier in this process behind its real gRPC server, and a child process that plays sixteen drafters
whose drafts cost nothing. What counts is the processor time of the thread with the event loop: scheduling, sessions, codec,
gRPC's and asyncio's Python, and what the system does for it. Neither the engine's thread is in it nor waiting. `--profile N`
shows that thread's N dearest functions (after that run, in another one, which the profiler slows: its shares count).
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import MODELS, Report, progress
from scheduler import Outcome, Plan, Scheduler, SchedulerConfig
from specfleet.core.protocol import Draft, Finished, Open, Opened, Verdict
from specfleet.core.trace import Phase, Tracer
from specfleet.core.types import Grant, ModelInfo, SamplingParams
from specfleet.engine import EngineConfig, TorchEngine
from specfleet.text import Tokenizer
from specfleet.wire.server import Server
from specfleet.wire.verification import GrpcVerifierConnection
from verifier.loop import BatchLoop
from verifier.session import Session
from verifier.verifier import Limits, Verifier

CONTEXT = 200
BATCHES = (1, 4, 8, 16)
DRAFT = 4
PARTS = (Phase.PLAN, Phase.BUILD, Phase.FORWARD, Phase.SAMPLING, Phase.ACCEPTANCE, Phase.REPLY)
SAMPLINGS = {
    "greedy": SamplingParams(max_tokens=100_000, temperature=0.0, ignore_eos=True),
    "seeded": SamplingParams(max_tokens=100_000, temperature=0.8, top_p=0.95, seed=7, ignore_eos=True),
}


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


# --- steps -----------------------------------------------------------------------------------------------------------


async def steps_of(
    engine: TorchEngine, streams: int, draft: int, steps: int, sampling: SamplingParams, tracer: Tracer | None = None
) -> tuple[float, float]:
    """Median seconds of a step and of the part outside the forward pass."""
    policy = f"fixed:{draft}" if draft else "none"
    scheduler = Timed(SchedulerConfig(speculation=policy, draft_wait_seconds=60.0), engine)
    loop = BatchLoop(engine, scheduler, time.monotonic, tracer=tracer)
    sessions = []
    for number in range(1, streams + 1):
        opening = Open(prompt=prompt(number), sampling=sampling, can_draft=bool(draft))
        session = Session(number, opening, (), 2000)
        sessions.append(session)
        loop.submit(session)

    async def read(session: Session) -> None:
        """What a stream's writer does, and its drafter."""
        for _ in range(steps):
            await session.outbox.get()
            if draft:
                known = len(session.tokens)
                guess = tuple((known * 31 + at) % 4000 for at in range(draft))
                loop.offer(session, Draft(position=known, tokens=guess, confirmed=known, last=True))

    task = asyncio.create_task(loop.run())
    await asyncio.gather(*map(read, sessions))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for session in sessions:
        engine.close(session.number)
    # The first ones are prefill.
    seconds, outside = zip(*scheduler.steps[10:], strict=True)
    return statistics.median(seconds), statistics.median(outside)


def prompt(number: int) -> tuple[int, ...]:
    return tuple((number * 131 + at * 7) % 4000 + 1 for at in range(CONTEXT))


def steps(report: Report, folder: Path, count: int) -> None:
    """Shares outside the forward pass by batch, drafts and sampling; parts of a step; what tracing costs."""
    # One thread: the daemon's own choice on two cores.
    engine = TorchEngine(EngineConfig(model=str(folder), dtype="float32", kv_cache_tokens=65_536, threads=1))
    rows = [["batch", "drafted", "sampling", "step ms", "outside forward ms", "share"]]
    for kind, sampling in SAMPLINGS.items():
        for streams in BATCHES:
            for draft in (0, DRAFT):
                step, outside = uvloop.run(steps_of(engine, streams, draft, count, sampling))
                share = outside / step
                rows.append(
                    [str(streams), str(draft), kind, f"{step * 1e3:.2f}", f"{outside * 1e3:.2f}", f"{share:.1%}"]
                )
                report.figures[f"{kind} {streams}x{draft}"] = {"step_s": step, "outside_s": outside}
                if streams == 16:
                    line = f"share outside the forward, batch of 16, {draft} drafted, {kind}"
                    report.bar(line, share, 0.07, at_most=True)
                progress(f"{kind} {streams} x {draft}")
    progress("")
    report.table("Steps of the production loop: the part outside the model's forward pass.", rows)
    parts(report, engine, count)
    engine.shutdown()


def parts(report: Report, engine: TorchEngine, count: int) -> None:
    """Batch 16 with drafts, in turns without and with a tracer."""
    tracer = Tracer(time.monotonic)
    traced = TorchEngine(engine.config, engine.model, tracer)
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for _ in range(6):
        for on, one in ((False, engine), (True, traced)):
            run = steps_of(one, 16, DRAFT, max(30, count // 6), SAMPLINGS["greedy"], tracer if on else None)
            found[on].append(uvloop.run(run))
    traced.shutdown()
    taken = tracer.counts[Phase.PLAN]
    row = ["ms", *(f"{tracer.seconds[phase] / taken * 1e3:.3f}" for phase in PARTS)]
    report.table(f"Parts of a step of 16 x {DRAFT} (mean, prefill included).", [["", *PARTS], row])
    report.figures["parts_s"] = {phase.value: tracer.seconds[phase] / taken for phase in PARTS}
    costs = [on[1] - off[1] for off, on in zip(found[False], found[True], strict=True)]
    cost = statistics.median(costs)
    print(f"tracing adds {cost * 1e6:.0f} microseconds a step (median of {len(costs)} pairs)")
    report.figures["tracing_s"] = cost


# --- rounds ----------------------------------------------------------------------------------------------------------


class Rounds(Scheduler):
    """Counts rounds, and the processor time of the loop's thread from one of them to another."""

    def __init__(self, config: SchedulerConfig, engine: TorchEngine, first: int, last: int, profile: bool) -> None:
        super().__init__(config)
        self.profiler = cProfile.Profile(time.thread_time) if profile else None
        self.over = asyncio.Event()
        self.seconds = 0.0
        self.rounds = self.steps = 0
        """In `seconds`."""
        self._engine = engine
        self._first, self._last = first, last
        self._seen = 0

    def commit(self, outcome: Outcome, now: float) -> dict[int, Grant]:
        before, self._seen = self._seen, self._seen + sum(item.drafted > 0 for item in outcome.items)
        if before < self._first <= self._seen:
            self.rounds, self.steps, self.seconds = -self._seen, -self._engine.counters.steps, -time.thread_time()
            if self.profiler:
                self.profiler.enable()
        elif before < self._last <= self._seen:
            if self.profiler:
                self.profiler.disable()
            self.seconds += time.thread_time()
            self.rounds += self._seen
            self.steps += self._engine.counters.steps
            self.over.set()
        return super().commit(outcome, now)


async def serve(folder: Path, count: int, profile: bool) -> Rounds:
    """Sixteen drafters of `count` rounds each, of which the first and last few do not count: prefill, first calls, ends."""
    tokenizer = Tokenizer.from_folder(str(folder))
    engine = TorchEngine(EngineConfig(model=str(folder), dtype="float32", kv_cache_tokens=65_536, threads=1))
    config = SchedulerConfig(speculation=f"fixed:{DRAFT}", draft_wait_seconds=60.0)
    found = Rounds(config, engine, 16 * 5, 16 * (count - 5), profile)
    loop = BatchLoop(engine, found, time.monotonic)
    vocabulary = tokenizer.vocabulary()
    model = ModelInfo("target", engine.model.vocabulary_size, vocabulary.digest(), engine.model.context_length, ())
    verifier = Verifier(loop, model, vocabulary, {}, Limits(kv_tokens=65_536), "here")
    server = Server()
    address = server.bind("127.0.0.1:0")
    server.add_verification(verifier)
    await server.start()
    batches = asyncio.create_task(loop.run())
    command = (sys.executable, __file__, "--drive", address, "--rounds", str(count))
    child = await asyncio.create_subprocess_exec(*command)
    ended = asyncio.create_task(child.wait())
    over = asyncio.create_task(found.over.wait())
    await asyncio.wait({ended, over, batches}, return_when=asyncio.FIRST_COMPLETED)
    if not over.done():
        raise SystemExit("the drafters, or the loop, ended too soon; nothing was measured")
    await ended
    await server.stop(1)
    batches.cancel()
    await asyncio.gather(batches, return_exceptions=True)
    engine.shutdown()
    return found


async def drive(address: str, rounds: int) -> None:
    """Sixteen drafters, each with a draft at hand whenever a verdict comes."""
    connection = GrpcVerifierConnection(address)
    digest = (await connection.model()).vocabulary_digest

    async def one(number: int) -> None:
        stream = await connection.verify()
        opening = Open(prompt=prompt(number), sampling=SAMPLINGS["greedy"], vocabulary_digest=digest)
        await stream.send(opening)
        known, verified = len(opening.prompt), 0
        while verified < rounds:
            message = await stream.receive()
            assert not isinstance(message, Finished) and message is not None
            if isinstance(message, Opened):
                continue
            assert isinstance(message, Verdict)
            known, verified = message.position + len(message.tokens), verified + 1
            guess = tuple((known * 31 + at) % 4000 for at in range(DRAFT))
            await stream.send(Draft(position=known, tokens=guess, confirmed=known, last=True, draft_seconds=1e-4))
        stream.cancel()

    await asyncio.gather(*(one(number) for number in range(1, 17)))
    await connection.close()


def rounds(report: Report, folder: Path, count: int, profile: int) -> None:
    found = uvloop.run(serve(folder, count, False))
    seconds, batch = found.seconds / found.rounds, found.rounds / found.steps
    print(f"\nPython of the event loop's thread: {seconds * 1e6:.0f} microseconds a round, {batch:.1f} rounds a step")
    report.figures["round"] = {"loop_s": seconds, "rounds_per_step": batch}
    report.bar("microseconds of Python per round", seconds * 1e6, 300.0, at_most=True, ratio=False)
    if profile:
        found = uvloop.run(serve(folder, count, True))
        assert found.profiler is not None
        report.table(
            f"The event loop's thread by function, of {found.seconds / found.rounds * 1e6:.0f} microseconds a round with "
            "the profiler on.",
            dearest(found.profiler, found.rounds, profile),
        )


def dearest(profiler: cProfile.Profile, rounds: int, count: int) -> list[list[str]]:
    """The functions that took most processor time themselves, what they called not counted."""
    stats: dict[tuple[str, int, str], tuple[Any, ...]] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    total = sum(own for _, _, own, *_ in stats.values())
    rows = [["function", "calls a round", "microseconds a round", "share"]]
    for (file, line, name), (_, calls, own, *_) in sorted(stats.items(), key=lambda one: -one[1][2])[:count]:
        where = name if file == "~" else f"{'/'.join(Path(file).parts[-2:])}:{line} {name}"
        rows.append([where, f"{calls / rounds:.1f}", f"{own / rounds * 1e6:.1f}", f"{own / total:.1%}"])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=200, help="per drafter")
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="functions to show")
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--drive", metavar="ADDRESS", help=argparse.SUPPRESS)
    found = parser.parse_args(arguments)
    if found.drive:
        uvloop.run(drive(found.drive, found.rounds))
        return 0
    report = Report("step_overhead")
    folder = found.models / "tiny-target"
    if found.steps:
        steps(report, folder, found.steps)
    if found.rounds:
        rounds(report, folder, found.rounds, found.profile)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
