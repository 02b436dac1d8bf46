"""One stream, and eight, through a real fleet on loopback, beside transformers' `generate` and its assisted generation.

    python benchmarks/single_stream.py [--rounds 5] [--tokens 64] [--models FOLDER]

Everything runs in one process tree on the same cores, in turns: transformers in this process, verifier and drafter as
daemons that idle meanwhile. All of them write the same greedy text. Speculation policies are fixed ones, each measured;
the bar is on the best of them, which a controller has yet to find by itself.

The ceiling beside each figure is what the pair's step costs and acceptance allow: a round of k drafted tokens commits
mu = (1 - a^(k+1)) / (1 - a) tokens in the time of one verification of k + 1 rows and k drafter steps, all measured on the
engines alone, with no daemon, no network and no text around them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import MODELS, PROMPTS, Report, interleaved, medians, progress, table
from specfleet import AsyncClient, Client, Reply, SamplingParams
from specfleet.cli.processes import DaemonProcess
from specfleet.core.step import StepItem

LENGTHS = (3, 5, 8)
POLICIES = ("fair-goodput", "fixed:3", "fixed:5", "fixed:8")
OTHERS = ("stream", "none")
STREAMS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--models", type=Path, default=MODELS)
    arguments = parser.parse_args()
    report = Report("single_stream")
    target, draft = arguments.models / "tiny-target", arguments.models / "tiny-draft"
    _section(report, "shipped pair", target, draft, arguments, PROMPTS)
    with tempfile.TemporaryDirectory() as folder:
        inflated = _inflate(target, Path(folder))
        # Half of the prompts: a target four times as slow takes its time.
        _section(report, "target inflated to 4x its cost (same function)", inflated, draft, arguments, PROMPTS[::2])
    return report.finish()


def _section(
    report: Report, title: str, target: Path, draft: Path, arguments: argparse.Namespace, prompts: tuple[str, ...]
) -> None:
    """Measure one pair; print its table, add its figures and bars."""
    costs = _step_costs(target, draft)
    peers = Peers(target, draft, arguments.tokens, prompts)
    single, many, acceptance = _measure(target, draft, peers, arguments)
    base, assisted = single["generate"], single["assisted"]
    print(f"\n{title}: tokens/s, medians of {arguments.rounds} interleaved rounds over {len(peers.prompts)} prompts")
    rows = [
        ["", "one stream", "vs generate", "vs assisted", "ceiling vs generate", f"{STREAMS} streams", "vs assisted"]
    ]
    for name, speed in single.items():
        top = _ceiling(name, costs, acceptance.get(name), base)
        together = many.get(name)
        rows.append(
            [
                name,
                f"{speed:.1f}",
                f"{speed / base:.2f}x",
                f"{speed / assisted:.2f}x",
                f"{top:.2f}x" if top else "",
                f"{together:.1f}" if together else "",
                f"{together / assisted:.2f}x" if together else "",
            ]
        )
    table(rows)
    print(
        f"engine steps: target {costs['target_1'] * 1e3:.2f} ms, 6 rows {costs['target_6'] / costs['target_1']:.2f}x, "
        f"9 rows {costs['target_9'] / costs['target_1']:.2f}x; drafter {costs['draft_1'] * 1e3:.2f} ms; "
        f"acceptance {max(acceptance.values(), default=0.0):.2f}"
    )
    report.figures[title] = {"one_stream": single, "eight_streams": many, "steps_s": costs, "acceptance": acceptance}
    best = max(speed for name, speed in single.items() if name in POLICIES)
    if title == "shipped pair":
        report.bar("one stream vs generate", best / base, 1.3)
        report.bar("one stream vs assisted generation", best / assisted, 1.3)
        report.bar(f"{STREAMS} streams vs assisted generation one after another", max(many.values()) / assisted, 2.5)
    else:
        report.bar("one stream vs generate, target inflated 4x", best / base, 1.8)


def _measure(
    target: Path, draft: Path, peers: Peers, arguments: argparse.Namespace
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Tokens/s of one stream and of eight, and acceptance, by name. A fleet per policy, all up at once, used in turns."""
    with ExitStack() as stack:
        fleets = {name: Fleet(stack, target, draft, name, peers) for name in (*POLICIES, *OTHERS)}
        runs: dict[str, Callable[[], float]] = {"generate": peers.generate, "assisted": peers.assisted}
        for name, fleet in fleets.items():
            runs[name] = fleet.one
        for name, fleet in fleets.items():
            runs[f"{name} x{STREAMS}"] = fleet.many
        found = medians(interleaved(runs, arguments.rounds))
        for fleet in fleets.values():
            if fleet.texts != peers.texts:
                raise SystemExit(f"{fleet.policy} wrote other text than the target alone: figures would mean nothing")
        acceptance = {name: fleet.acceptance for name, fleet in fleets.items() if fleet.acceptance}
    single = {name: speed for name, speed in found.items() if not name.endswith(f" x{STREAMS}")}
    many = {name.split(" ")[0]: speed for name, speed in found.items() if name.endswith(f" x{STREAMS}")}
    return single, many, acceptance


class Peers:
    """transformers on the same pair and prompts, in this process."""

    def __init__(self, target: Path, draft: Path, tokens: int, prompts: tuple[str, ...]) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._target: Any = AutoModelForCausalLM.from_pretrained(target, dtype="float32")
        self._draft: Any = AutoModelForCausalLM.from_pretrained(draft, dtype="float32")
        self._draft.generation_config.num_assistant_tokens = 5
        self._tokenizer: Any = AutoTokenizer.from_pretrained(target)
        self.tokens = tokens
        self.prompts = prompts
        self.texts: list[tuple[int, ...]] = []

    def generate(self) -> float:
        return self._run({})

    def assisted(self) -> float:
        return self._run({"assistant_model": self._draft})

    def _run(self, options: dict[str, Any]) -> float:
        """Tokens/s over all prompts, one after another."""
        texts, seconds = [], 0.0
        for prompt in self.prompts:
            inputs = self._tokenizer(prompt, return_tensors="pt")
            start = time.perf_counter()
            output = self._target.generate(
                **inputs, do_sample=False, max_new_tokens=self.tokens, pad_token_id=0, **options
            )
            seconds += time.perf_counter() - start
            texts.append(tuple(output[0, inputs["input_ids"].shape[1] :].tolist()))
        if not options:
            self.texts = texts
        return sum(map(len, texts)) / seconds


class Fleet:
    """A verifier and a drafter as daemons on loopback."""

    def __init__(self, stack: ExitStack, target: Path, draft: Path, policy: str, peers: Peers) -> None:
        self.policy = policy

        def daemon(*options: str) -> DaemonProcess:
            process = stack.enter_context(DaemonProcess(*options, "--listen", "127.0.0.1:0", "--metrics", ""))
            process.wait_ready(120)
            return process

        progress(f"starting the fleet of {policy}")
        verifier = daemon("verifier", "--model", str(target), "--speculation", policy)
        self._address = daemon("drafter", "--model", str(draft), "--verifier", verifier.address).address
        self._prompts = peers.prompts
        self._eight = [peers.prompts[n % len(peers.prompts)] for n in range(STREAMS)]
        self._sampling = SamplingParams(max_tokens=peers.tokens, temperature=0.0)
        self.texts: list[tuple[int, ...]] = []
        self._drafted = self._accepted = 0

    @property
    def acceptance(self) -> float:
        """Accepted over *tested* tokens: a round tests up to its first refusal."""
        return self._accepted / self._drafted if self._drafted else 0.0

    def one(self) -> float:
        """Tokens/s over all prompts, one after another."""
        with Client(self._address) as client:
            client.models()  # connected before the clock starts
            start = time.perf_counter()
            replies = [client.generate(prompt, self._sampling) for prompt in self._prompts]
            seconds = time.perf_counter() - start
        self._count(replies)
        return sum(len(reply.token_ids) for reply in replies) / seconds

    def many(self) -> float:
        """Tokens/s of all prompts at once."""

        async def run() -> float:
            async with AsyncClient(self._address) as client:
                await client.models()
                start = time.perf_counter()
                replies = await asyncio.gather(*(client.generate(prompt, self._sampling) for prompt in self._eight))
                seconds = time.perf_counter() - start
            self._count(replies)
            return sum(len(reply.token_ids) for reply in replies) / seconds

        return asyncio.run(run())

    def _count(self, replies: list[Reply]) -> None:
        self.texts = [reply.token_ids for reply in replies][: len(self._prompts)]
        for reply in replies:
            rounds, accepted = reply.speculation.rounds, reply.speculation.accepted
            full = accepted == reply.speculation.drafted
            self._accepted += accepted
            # Tested: the accepted ones, and the first refused one of each round that was not accepted in full.
            self._drafted += accepted + (0 if full else min(rounds, reply.speculation.drafted - accepted))


def _step_costs(target: Path, draft: Path) -> dict[str, float]:
    """Median seconds of engine steps at context 200: the target with 1 to 9 rows, the drafter with one."""
    from specfleet.engine import EngineConfig, TorchEngine

    greedy = SamplingParams(temperature=0.0)
    runs: dict[str, Callable[[], float]] = {}
    engines = []
    for name, path, rows in (("target", target, (1, *(k + 1 for k in LENGTHS))), ("draft", draft, (1,))):
        engine = TorchEngine(EngineConfig(model=str(path), dtype="float32", kv_cache_tokens=1024))
        engine.open(1, [1])
        engine.step_sync([StepItem(1, list(range(1, 201)), greedy, sample=False)])
        engines.append(engine)
        for count in sorted(set(rows)):
            runs[f"{name}_{count}"] = _stepper(engine, StepItem(1, list(range(7, 7 + count)), greedy, draft=count - 1))
    found = medians(interleaved(runs, 40, warmup=5))
    for engine in engines:
        engine.shutdown()
    del engines
    gc.collect()
    return found


def _stepper(engine: Any, item: StepItem) -> Callable[[], float]:
    def step() -> float:
        start = time.perf_counter()
        engine.step_sync([item])
        seconds = time.perf_counter() - start
        engine.truncate(1, 200)
        return seconds

    return step


def _ceiling(policy: str, costs: dict[str, float], acceptance: float | None, base: float) -> float | None:
    """Tokens/s over those of `generate` that a fixed length could reach with nothing around the engines."""
    if acceptance is None or not policy.startswith("fixed:"):
        return None
    length = int(policy.split(":")[1])
    tokens = sum(acceptance**power for power in range(length + 1))
    return tokens / (costs[f"target_{length + 1}"] + length * costs["draft_1"]) / base


def _inflate(target: Path, folder: Path) -> Path:
    """The target made four times as costly, computing the same function."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from models.inflate import inflate

    out = folder / "tiny-target-inflated-4x"
    inflate(AutoModelForCausalLM.from_pretrained(target, dtype="float32"), factor=4.0).save_pretrained(out)
    AutoTokenizer.from_pretrained(target).save_pretrained(out)
    return out


if __name__ == "__main__":
    sys.exit(main())
