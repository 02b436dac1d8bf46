"""What deciding costs: one `plan` and `commit` of the scheduler with 100 to 10,000 sessions, and one verdict's decision.

    python benchmarks/controller.py [--steps 300] [--rounds 5]

Pure Python on one core, no engine. Sessions are in whatever modes `fair-goodput` puts them in; drafts arrive for those that
wait for them. A step takes at most 512 tokens, as the verifier's does by default, and its time grows with them, so that
the number of verdicts in a step is what it would be. p99 over the steps after a warm-up.

Each load is played several times, the loads in turn. The same step does the same work in every play, so that the median of
its times is near what it takes where the machine does nothing else meanwhile, and p50 and p99 are those of the steps, not of
the machine; where neighbours slow more than half of the plays, `least` tells: the p99 of the steps in their fastest plays.

What can be had shows in a reference: a bare step that does with 512 plain objects what no scheduler in Python can leave out
(take them in turn by identity and add up their lengths; find each session, read what the step did, write seven counts, add
up the identity's tokens, put it last, hand out a grant). With 16 decisions, as many as a step makes, that is the floor.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Report, progress, table
from scheduler import ItemOutcome, Outcome, Scheduler, SchedulerConfig
from scheduler.speculation.fair_goodput import DECISIONS
from scheduler.step_profile import StepProfile
from specfleet.core.types import LOCAL, Grant, Mode, ServiceClass

COLUMNS = ("plan_p50", "commit_p50", "both_p50", "both_p99", "least_p99")
SIZES = (100, 1_000, 10_000)
CHANCES = (0.9, 0.6, 0.7, 0.8) * 8
"""What drafters say of their guesses."""
PROFILE = StepProfile(0.03, 2e-4, 1e-7)
CLASSES = (ServiceClass("chat", 2.0, 0.2), ServiceClass("fast", 1.0, 0.1, weight=2.0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5, help="plays of each load")
    parser.add_argument("--max-step-tokens", type=int, default=512)
    arguments = parser.parse_args()
    for name in ("steps", "rounds", "max_step_tokens"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}, must be at least 1")
    report = Report("controller")
    loads = [(sessions, classes) for sessions in SIZES for classes in (False, True)]
    plays: dict[tuple[int, bool], list[Play]] = {load: [] for load in loads}
    for number in range(arguments.rounds):
        for sessions, classes in loads:
            progress(f"play {number + 1}: {sessions} sessions{', with classes' if classes else ''}")
            plays[sessions, classes].append(Load(sessions, classes, arguments.max_step_tokens).run(arguments.steps))
    rows = [["sessions", "classes", "verdicts a step", "plan p50", "commit p50", "both p50", "both p99", "least p99"]]
    for (sessions, classes), same in plays.items():
        figures = summary(same)
        report.figures[f"{sessions} sessions{' with classes' if classes else ''}"] = figures
        rows.append(
            [
                f"{sessions:,}",
                "mixed" if classes else "none",
                f"{figures['verdicts']:.0f}",
                *(f"{figures[key] * 1e3:.2f} ms" for key in COLUMNS),
            ]
        )
    table(rows)
    bare = bare_step(arguments.steps)
    report.figures["bare"] = bare
    decision = one_decision()
    report.figures["decision_s"] = decision
    print(f"\none verdict's decision: {decision * 1e6:.1f} microseconds")
    floor = bare["p50"] + DECISIONS * decision
    print(f"512 verdicts in a bare step: {bare['p50'] * 1e3:.2f} ms, p99 {bare['p99'] * 1e3:.2f}; ", end="")
    print(f"with {DECISIONS} decisions {floor * 1e3:.2f} ms")
    for sessions, bar in ((1_000, 1e-3), (10_000, 10e-3)):
        figure = report.figures[f"{sessions} sessions"]["both_p99"]
        report.bar(f"plan + commit p99, {sessions} sessions", figure, bar, at_most=True)
    report.bar("one verdict's decision", decision, 20e-6, at_most=True)
    return report.finish()


@dataclass(frozen=True, slots=True)
class Play:
    """Seconds of each step."""

    plans: list[float]
    commits: list[float]
    verdicts: list[int]


def summary(plays: Sequence[Play]) -> dict[str, float]:
    """Of plays of the same load: what the steps take, each in the median of its plays."""
    plans = np.median([play.plans for play in plays], axis=0)
    commits = np.median([play.commits for play in plays], axis=0)
    every = [np.add(play.plans, play.commits) for play in plays]
    both = np.median(every, axis=0)
    return {
        "verdicts": float(np.mean(plays[0].verdicts)),
        "plan_p50": float(np.median(plans)),
        "commit_p50": float(np.median(commits)),
        "both_p50": float(np.median(both)),
        "both_p99": float(np.percentile(both, 99)),
        "least_p99": float(np.percentile(np.min(every, axis=0), 99)),
    }


class Load:
    """A scheduler with sessions, and what happens to them."""

    def __init__(self, sessions: int, classes: bool, max_step_tokens: int) -> None:
        self._rng = np.random.default_rng(0)
        config = SchedulerConfig(
            speculation="fair-goodput", classes=CLASSES, profile=PROFILE, max_step_tokens=max_step_tokens
        )
        self.scheduler = Scheduler(config)
        names = ("", "chat", "fast") if classes else ("",)
        for number in range(sessions):
            known = int(self._rng.integers(50, 2000))
            self.scheduler.open(
                number,
                known=known,
                computed=known - 1,
                can_draft=True,
                now=0.0,
                identity=str(number % 97),
                service=self.scheduler.service_class(names[number % len(names)]),
                draft_seconds=float(self._rng.uniform(0.002, 0.02)),
                round_trip=float(self._rng.uniform(0.002, 0.05)),
            )
        self._records = {record.session: record for record in self.scheduler}
        self._now = 0.0

    def run(self, steps: int) -> Play:
        plans, commits, verdicts = [], [], []
        gc.collect()
        gc.freeze()
        for step in range(steps + 50):
            start = time.perf_counter()
            plan = self.scheduler.plan(self._now, 10**9)
            planned = time.perf_counter() - start
            seconds = PROFILE.fixed + PROFILE.per_token * sum(item.tokens for item in plan.items)
            self._now = self._now + seconds if plan.items else plan.wake_at or self._now
            outcome = Outcome(tuple(self._outcome(item) for item in plan.items), seconds, plan.shape)
            start = time.perf_counter()
            grants = self.scheduler.commit(outcome, self._now)
            committed = time.perf_counter() - start
            for session, grant in grants.items():
                if grant.mode is not Mode.LOCAL:
                    length = grant.length if grant.mode is Mode.ROUND else min(grant.length, 4)
                    known = self._records[session].known
                    self.scheduler.drafted(
                        session,
                        length,
                        True,
                        self._now,
                        tokens=length,
                        seconds=0.005 * length,
                        confirmed=known,
                        chances=CHANCES[:length],
                    )
            if step >= 50:
                plans.append(planned)
                commits.append(committed)
                verdicts.append(len(grants))
        gc.unfreeze()
        return Play(plans, commits, verdicts)

    def _outcome(self, item: object) -> ItemOutcome:
        accepted = min(item.draft, int(self._rng.geometric(0.3)) - 1) if item.draft else 0  # type: ignore[attr-defined]
        return ItemOutcome(item.session, item.feed, item.draft, accepted, accepted + 1, 0)  # type: ignore[attr-defined]


@dataclass(slots=True)
class Bare:
    """As many counts as a record has that change with every verdict."""

    session: int
    identity: int
    known: int = 100
    computed: int = 99
    emitted: int = 0
    drafted: int = 0
    ready_at: float = 0.0
    told_at: float = 0.0
    told_before: float = 0.0
    grant: Grant = LOCAL


def bare_step(steps: int, sessions: int = 1_000, verdicts: int = 512) -> dict[str, float]:
    """Seconds of a step that takes `verdicts` of `sessions` records in turn, counts what it did for them, and decides
    nothing."""
    records = {number: Bare(number, number % 97) for number in range(sessions)}
    queues: dict[int, dict[int, Bare]] = {}
    for number, record in records.items():
        queues.setdefault(record.identity, {})[number] = record
    times = []
    for step in range(steps):
        now, start = float(step), time.perf_counter()
        taken = list(islice(chain.from_iterable(own.values() for own in queues.values()), verdicts))
        lengths = [record.computed for record in taken]
        sum(lengths)
        len([1 for length in lengths if not length % 16])
        planned = time.perf_counter() - start
        outcomes = [ItemOutcome(record.session, 1, 0, 0, 1, 0) for record in taken]
        start = time.perf_counter()
        grants = {}
        tokens: dict[int, int] = {}
        for session, _, _, _, committed, pending, _, _, _, _ in outcomes:
            record = records[session]
            record.computed = record.known
            record.known += committed
            record.emitted += committed
            record.drafted = pending
            record.told_before, record.told_at, record.ready_at = record.told_at, now, now
            tokens[record.identity] = tokens.get(record.identity, 0) + committed
            own = queues[record.identity]
            own[session] = own.pop(session)
            grants[session] = record.grant
        times.append(planned + time.perf_counter() - start)
        queues = dict(sorted(queues.items(), key=lambda queue: next(iter(queue[1].values())).ready_at))
    return {"p50": float(np.median(times)), "p99": float(np.percentile(times, 99))}


def one_decision() -> float:
    """Median seconds of `decided` alone."""
    load = Load(20, False, 512)
    load.run(50)
    policy = load.scheduler._speculation
    record = next(iter(load.scheduler))
    item = ItemOutcome(record.session, 1, 4, 2, 3, 0)
    times = []
    for _ in range(5000):
        start = time.perf_counter()
        policy.decided(record, item, 1e3)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


if __name__ == "__main__":
    sys.exit(main())
