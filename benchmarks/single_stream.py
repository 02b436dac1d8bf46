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
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import MODELS, PROMPTS, Report, interleaved, medians
from benchmarks.contenders import Fleet, Transformers
from specfleet import SamplingParams
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
    peers = Transformers(target, draft, arguments.tokens, prompts)
    single, many, acceptance = _measure(target, draft, peers, arguments)
    base, assisted = single["generate"], single["assisted"]
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
    about = f"tokens/s, medians of {arguments.rounds} interleaved rounds over {len(peers.prompts)} prompts"
    report.table(f"{title.capitalize()}: {about}.", rows)
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
    target: Path, draft: Path, peers: Transformers, arguments: argparse.Namespace
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Tokens/s of one stream and of eight, and acceptance, by name. A fleet per policy, all up at once, used in turns."""
    with ExitStack() as stack:
        fleets = {
            name: Fleet(stack, target, draft, name, peers.prompts, peers.tokens, STREAMS)
            for name in (*POLICIES, *OTHERS)
        }
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


def _step_costs(target: Path, draft: Path) -> dict[str, float]:
    """Median seconds of engine steps at context 200: the target with 1 to 9 rows, the drafter with one."""
    from specfleet.engine import EngineConfig, TorchEngine

    greedy = SamplingParams(temperature=0.0)
    runs: dict[str, Callable[[], float]] = {}
    engines = []
    for name, path, rows in (("target", target, (1, *(k + 1 for k in LENGTHS))), ("draft", draft, (1,))):
        bits = "auto" if name == "draft" else None  # as the daemons run them
        engine = TorchEngine(EngineConfig(model=str(path), dtype="float32", kv_cache_tokens=1024, quantize=bits))
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
