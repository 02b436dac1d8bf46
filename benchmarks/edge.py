"""The edge: drafts that end where they would be wasted, lookup where text repeats itself, no waiting for the network.

    python benchmarks/edge.py [--section early …] [--rounds 5] [--prompts FILE.jsonl] [--count 96]

Sections, each in turns within one run, medians, bars on ratios:

    early     the shipped pair's engines in this process, greedy text of --prompts: learn online on one half of them,
              measure on the other. What full drafts of 8 accept and waste beside the same drafts ended early, and the
              calibration of the chances that decided (learning goes on meanwhile, as it does in use).
    lookup    a fleet on loopback, fixed:8, texts that repeat themselves (our own: summaries, edits, lists): hybrid and model.
    overlap   a fleet with 20 ms to the verifier and back (a proxy on this machine), fixed:4 with and without drafting ahead.
    distance  none, fixed:4, stream and fair-goodput at 20, 60 and 120 ms, each by two fleets: two processes that do the same
              differ by 7 %.
    trees     second guesses beside drafts (drafter --trees) and none, one text at a time and eight: tokens/s, tokens a round.
    users     the draft model alone: tokens/s of one local user and of eight that share its batches.

Fleets: the verifier is pinned to one core and the drafter to another, so that neither takes the other's time; this
process, the proxy included, runs where there is room. What draft-ahead could gain at most on the very texts is counted
(benchmarks/agreement.py); where that is less than a bar, the bar is nine tenths of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.agreement import ROUND, Agreement, agreement
from benchmarks.common import MODELS, PROMPTS, ROOT, Report, interleaved, medians, pinned, progress, table
from benchmarks.delay import DelayProxy
from drafter.batcher import DraftBatcher
from drafter.early_stop import Calibration, EarlyStop, Watch, features, remember
from specfleet import Client, SamplingParams
from specfleet.cli.processes import DaemonProcess
from specfleet.core.step import Confidence, StepItem, StepResult
from specfleet.engine import EngineConfig, TorchEngine
from specfleet.engine.confidence import confidences
from specfleet.text import Tokenizer

TARGET, DRAFT = MODELS / "tiny-target", MODELS / "tiny-draft"
GREEDY = SamplingParams(temperature=0.0)
KIND, LENGTH = "model-greedy", 8
USERS = 8
ANY = "127.0.0.1:0"
COPIES = 2
"""Fleets of each policy."""
LEVEL = 0.97
"""What is as fast as something else, as far as can be told."""
LINE = "The red fox saw the old dog by the river and the dog saw the red fox. "
REPETITIVE = (
    "Story: " + LINE * 4 + "\nThe same story again: The red fox",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\n" * 3 + "def add(a, b):\n",
    "apples, pears, plums, cherries, apples, pears, plums, cherries, apples, pears,",
    "Question: Tom has 3 red cups and 4 blue cups. How many cups?\nAnswer: 3 + 4 = 7. #### 7\n\n" * 3
    + "Question: Tom has 3 red cups",
    "Lily had a cat. The cat was big. Lily had a dog. The dog was big. Lily had a fish. The fish was big. Lily had a",
    "for i in range(10):\n    print(i)\n" * 4 + "for i in",
)
"""Texts whose continuation mostly stands in them: lists, edits of code, summaries that quote. Our own."""


@dataclass(frozen=True)
class Round:
    """A full draft and its verdict."""

    prompt: int
    confidences: list[Confidence]
    accepted: int


@dataclass
class Outcome:
    accepted: int = 0
    wasted: int = 0

    @property
    def row(self) -> list[int]:
        return [self.accepted, self.wasted]


def early(report: Report, arguments: argparse.Namespace) -> None:
    found, cost = _rounds(arguments.prompts, arguments.count, arguments.tokens)
    stop = EarlyStop()
    learn, test = [one for one in found if one.prompt % 2 == 0], [one for one in found if one.prompt % 2]
    _follow(stop, learn, cost["least"])
    stop.calibration = Calibration()
    ended = _follow(stop, test, cost["least"])
    full = Outcome(sum(one.accepted for one in test), sum(LENGTH - one.accepted for one in test))
    names = {f"fixed:{LENGTH}": full, "ended early": ended}
    rows = [[name, f"{one.accepted / len(test):.3f}", f"{one.wasted / len(test):.3f}"] for name, one in names.items()]
    table([["per round", "accepted", "wasted"], *rows])
    error = stop.calibration.error
    print(
        f"{len(learn)} rounds to learn from, {len(test)} to measure; a draft ends below a survival of {cost['least']:.3f}: "
        f"{cost['draft_s'] * 1e3:.2f} ms a guess, {cost['rate']:.0f} tokens/s over whole rounds"
    )
    print(f"calibration error {error:.3f}; {cost['stop_us']:.1f} µs a token")
    report.figures["early"] = cost | {"rounds": len(test), "full": full.row, "ended": ended.row, "calibration": error}
    report.bar("early stop: wasted draft tokens, less by", 1.0 - ended.wasted / full.wasted, 0.4)
    report.bar("early stop: accepted tokens, less by", 1.0 - ended.accepted / full.accepted, 0.05, at_most=True)
    report.bar("early stop: calibration error", error, 0.05, at_most=True)
    report.bar("early stop: microseconds a token", cost["stop_us"], 50.0, at_most=True)


def _follow(stop: EarlyStop, rounds: list[Round], least: float) -> Outcome:
    """What drafts ended early would have had accepted and wasted, learning from each verdict as a drafter does."""
    own, outcome, record, prompt = stop.predictor(KIND), Outcome(), 0.0, -1
    for one in rounds:
        if one.prompt != prompt:
            record, prompt = own.typical, one.prompt
        watch = Watch(own, 0, record, 1.0, least)
        made = next((n for n, sure in enumerate(one.confidences, 1) if watch(StepResult(confidence=sure))), LENGTH)
        accepted = min(made, one.accepted)
        outcome.accepted += accepted
        outcome.wasted += made - accepted
        # Those that were not drafted are not labelled.
        xs = [features(sure, place, record) for place, sure in enumerate(one.confidences[: min(made, accepted + 1)])]
        for place, x in enumerate(xs):
            right = place < one.accepted
            stop.learn(KIND, x, own.chance(x), right)
            record = remember(record, right)
    return outcome


def _rounds(prompts: Path, count: int, tokens: int) -> tuple[list[Round], dict[str, float]]:
    """Full drafts of the shipped pair over `count` of the prompts, and what drafting, verifying and deciding cost."""
    tokenizer = Tokenizer.from_folder(TARGET)
    texts = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    texts = texts[:: max(1, len(texts) // count)][:count]
    target, draft = TorchEngine(EngineConfig(model=str(TARGET), threads=1)), _draft_engine()
    found: list[Round] = []
    drafting, verifying, committed = [], [], 0
    for number, prompt in enumerate(texts):
        progress(f"drafting, prompt {number + 1} of {len(texts)}")
        text = tokenizer.encode(prompt)[:400]
        end = len(text) + tokens
        for engine in (target, draft):
            engine.open(number, text)
        text += target.step_sync([StepItem(number, text[target.length(number) :], GREEDY)])[0].tokens
        while len(text) < end:
            feed = StepItem(number, text[draft.length(number) :], GREEDY, want_confidence=True)
            start = time.perf_counter()
            row = draft.extend_sync([feed], LENGTH)[0]
            drafted = time.perf_counter()
            guesses = [one.tokens[-1] for one in row]
            item = StepItem(number, text[target.length(number) :] + guesses, GREEDY, draft=LENGTH)
            verdict = target.step_sync([item])[0]
            verifying.append(time.perf_counter() - drafted)
            drafting.append((drafted - start) / LENGTH)
            found.append(Round(number, [one.confidence for one in row if one.confidence], verdict.accepted))
            text += verdict.tokens
            committed += len(verdict.tokens)
            draft.truncate(number, min(draft.length(number), len(text) - 1))
        target.close(number)
        draft.close(number)
    seconds = statistics.median(drafting)
    rate = committed / len(found) / (statistics.median(verifying) + LENGTH * seconds)
    stop_us = _stop_cost(draft) * 1e6
    for engine in (target, draft):
        engine.shutdown()
    progress("")
    return found, {"draft_s": seconds, "rate": rate, "least": seconds * rate, "stop_us": stop_us}


def _draft_engine() -> TorchEngine:
    """The draft model as a drafter runs it where nothing else is said."""
    return TorchEngine(EngineConfig(model=str(DRAFT), threads=1, quantize="auto"))


def _stop_cost(engine: TorchEngine) -> float:
    """Seconds a token for all that early stopping does, the statistics and the decision, each right behind a forward pass
    as in use: in a loop of their own, with warm caches, they take a third of that. Median of this thread's processor time."""
    engine.open(10**6, [5])
    engine.step_sync([StepItem(10**6, list(range(5, 105)), GREEDY)])
    watch, taken = Watch(EarlyStop().predictor(KIND), 0, 0.6, 1.0, 0.0), []
    for _ in range(400):
        logits = engine.forward([StepItem(10**6, [7], GREEDY)])
        engine.truncate(10**6, 100)
        best, chosen = (found.tolist() for found in logits.max(-1))
        start = time.thread_time()
        watch(StepResult(confidence=confidences(logits, best, chosen)[0]))
        taken.append(time.thread_time() - start)
    return statistics.median(taken)


# --- fleets ----------------------------------------------------------------------------------------------------------


class Fleet:
    """A verifier and a drafter as daemons, `round_trip` seconds apart."""

    def __init__(self, stack: ExitStack, policy: str, round_trip: float, prompts: tuple[str, ...], tokens: int) -> None:
        self._stack = stack
        self._prompts = prompts
        self._sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        with pinned(0):
            verifier = self._start("verifier", "--model", str(TARGET), "--speculation", policy, "--threads", "1")
        self._way = verifier.address
        if round_trip:
            self._way = stack.enter_context(DelayProxy(verifier.address, round_trip / 2)).address
        self.texts: dict[str, list[tuple[int, ...]]] = {}
        """Of each run, the last it wrote."""
        self.per_round: dict[str, float] = {}
        """Tokens that a round of a drafter committed, in its last run."""

    def _start(self, *options: str) -> DaemonProcess:
        progress(f"starting {' '.join(options[:1])}")
        process = self._stack.enter_context(DaemonProcess(*options, "--listen", ANY, "--http", "", "--metrics", ""))
        process.wait_ready(120)
        return process

    def drafter(self, *options: str) -> Callable[[], float]:
        """A drafter more; what runs all prompts through it, one after another, and returns tokens/s."""
        return partial(self.run, " ".join(options), self.start(*options), 1)

    def start(self, *options: str) -> str:
        """A drafter more, and its address."""
        with pinned(1):
            return self._start("drafter", "--model", str(DRAFT), "--verifier", self._way, *options).address

    def run(self, name: str, address: str, streams: int) -> float:
        """All prompts through the drafter at `address`, so many at a time: tokens/s; the rest is kept by `name`."""
        with Client(address) as client, ThreadPoolExecutor(streams) as pool:
            client.models()  # connected before the clock starts
            start = time.perf_counter()
            replies = list(pool.map(lambda prompt: client.generate(prompt, self._sampling), self._prompts))
            seconds = time.perf_counter() - start
        self.texts[name] = [reply.token_ids for reply in replies]
        said = [reply.speculation for reply in replies if reply.speculation]
        rounds = sum(one.rounds for one in said)
        self.per_round[name] = 1.0 + sum(one.accepted for one in said) / rounds if rounds else 1.0
        return sum(len(reply.token_ids) for reply in replies) / seconds


def _check(*fleets: Fleet) -> None:
    if len({tuple(texts) for fleet in fleets for texts in fleet.texts.values()}) != 1:
        raise SystemExit("not everybody wrote the same texts: figures would mean nothing")


def lookup(report: Report, arguments: argparse.Namespace) -> None:
    with ExitStack() as stack:
        fleet = Fleet(stack, f"fixed:{LENGTH}", 0.0, REPETITIVE, arguments.tokens)
        runs = {name: fleet.drafter("--speculator", name) for name in ("model", "hybrid")}
        found = medians(interleaved(runs, arguments.rounds))
        _check(fleet)
    _say(report, "lookup", found)
    report.bar("texts that repeat themselves: hybrid over model", found["hybrid"] / found["model"], 1.2)


def _counted(prompts: tuple[str, ...], tokens: int) -> Agreement:
    """Where the draft model agrees, in this process."""
    progress("counting what drafting could gain")
    target, draft = TorchEngine(EngineConfig(model=str(TARGET), threads=1)), _draft_engine()
    tokenizer = Tokenizer.from_folder(TARGET)
    found = agreement(target, draft, [tokenizer.encode(prompt) for prompt in prompts], tokens)
    for engine in (target, draft):
        engine.shutdown()
    progress("")
    return found


def overlap(report: Report, arguments: argparse.Namespace) -> None:
    waits = "waits for verdicts"
    counted = _counted(PROMPTS, arguments.tokens)
    with ExitStack() as stack:
        fleet = Fleet(stack, f"fixed:{ROUND}", 0.02, PROMPTS, arguments.tokens)
        waiting = "--no-ahead --no-early-stop"
        runs = {
            waits: fleet.drafter(*waiting.split()),
            "drafts ahead": fleet.drafter("--no-early-stop"),
            "drafts ahead, ends early": fleet.drafter(),
        }
        found = medians(interleaved(runs, arguments.rounds))
        _check(fleet)
        round_seconds = fleet.per_round[waiting] / found[waits]
    _say(report, "overlap", found)
    most = counted.overlap_ceiling(round_seconds)
    print(
        f"going on from whole drafts alone gives at most {most:.3f}x: rounds take {round_seconds * 1e3:.1f} ms, "
        f"verification {counted.verify_seconds * 1e3:.1f}"
    )
    report.figures["overlap by whole drafts, at most"] = most
    best = max(found["drafts ahead"], found["drafts ahead, ends early"])
    report.bar("20 ms away, fixed:4: drafting ahead over waiting", best / found[waits], 1.15)


def distance(report: Report, arguments: argparse.Namespace) -> None:
    prompts = PROMPTS[::2]
    counted = _counted(prompts, arguments.tokens)
    for milliseconds in (20, 60, 120):
        with ExitStack() as stack:
            fleets = {
                (policy, copy): Fleet(stack, policy, milliseconds / 1e3, prompts, arguments.tokens)
                for copy in range(COPIES)
                for policy in ("none", "fixed:4", "stream", "fair-goodput")
            }
            runs = {f"{policy} {copy}": fleet.drafter() for (policy, copy), fleet in fleets.items()}
            each = interleaved(runs, arguments.rounds)
            _check(*fleets.values())
        found = medians(
            {policy: [x for copy in range(COPIES) for x in each[f"{policy} {copy}"]] for policy, _ in fleets}
        )
        _say(report, f"{milliseconds} ms away", found)
        most = counted.stream_ceiling(milliseconds / 1e3, LENGTH)
        print(f"a stream at most {most:.3f}x: a step takes {counted.step_seconds * 1e3:.1f} ms")
        report.figures[f"{milliseconds} ms away, a stream at most"] = most
        bar = 1.0 if LEVEL * most > 1.0 else LEVEL
        report.bar(f"{milliseconds} ms away: stream over none", found["stream"] / found["none"], bar)
        report.bar(
            f"{milliseconds} ms away: fair-goodput over the best", found["fair-goodput"] / max(found.values()), LEVEL
        )
        if milliseconds == 60:
            report.bar("60 ms away: stream over fixed:4", found["stream"] / found["fixed:4"], 2.0)


def trees(report: Report, arguments: argparse.Namespace) -> None:
    texts = [json.loads(line)["prompt"] for line in arguments.prompts.read_text().splitlines()]
    short = [text for text in texts if len(text) < 600]
    prompts = tuple(short[:: max(1, len(short) // USERS)][:USERS])
    for policy in ("fixed:4", "stream", "fair-goodput"):
        with ExitStack() as stack:
            fleet = Fleet(stack, policy, 0.0, prompts, arguments.tokens)
            drafters = {"chains": fleet.start(), "trees": fleet.start("--trees")}
            for streams in (1, USERS):
                name = f"{policy}, {streams} at a time"
                runs = {kind: partial(fleet.run, kind, where, streams) for kind, where in drafters.items()}
                found = medians(interleaved(runs, arguments.rounds))
                _check(fleet)
                _say(report, name, found)
                each = dict(fleet.per_round)
                print(f"tokens a round: {each['chains']:.3f} with chains, {each['trees']:.3f} with trees")
                report.figures[f"{name}, tokens a round"] = each


def users(report: Report, arguments: argparse.Namespace) -> None:
    found = asyncio.run(_users(arguments.rounds))
    _say(report, "users", found)
    many, one = f"{USERS} users", "1 user"
    report.bar(f"{USERS} local users over one, drafted tokens/s", found[many] / found[one], 3.0)


async def _users(rounds: int) -> dict[str, float]:
    """Drafted tokens/s through the batcher: users that ask for 8 tokens again and again."""
    engine = _draft_engine()
    batcher = DraftBatcher(engine)
    task = asyncio.create_task(batcher.run())
    taken: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for count in (1, USERS):
            lines = [batcher.line(GREEDY) for _ in range(count)]
            await asyncio.gather(*(line.draft(list(range(7, 107)), 1) for line in lines))
            start = time.perf_counter()
            for _ in range(10):
                await asyncio.gather(*(line.draft(list(range(7, 107)), LENGTH) for line in lines))
            seconds = time.perf_counter() - start
            if number:
                taken.setdefault(f"{count} user{'s' * (count > 1)}", []).append(10 * LENGTH * count / seconds)
            for line in lines:
                line.close()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    engine.shutdown()
    return medians(taken)


def _say(report: Report, name: str, found: dict[str, float]) -> None:
    first = next(iter(found.values()))
    print()
    table([[name, "tokens/s", ""], *([row, f"{speed:.1f}", f"{speed / first:.2f}x"] for row, speed in found.items())])
    report.figures[name] = found


SECTIONS = {"early": early, "lookup": lookup, "overlap": overlap, "distance": distance, "trees": trees, "users": users}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", action="append", choices=tuple(SECTIONS), default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--count", type=int, default=96, help="prompts of the early section, one in two to learn from")
    parser.add_argument("--prompts", type=Path, default=ROOT.parent / "shared" / "prompts" / "spec_bench.jsonl")
    arguments = parser.parse_args()
    report = Report("edge")
    for name in arguments.section or SECTIONS:
        SECTIONS[name](report, arguments)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
