"""One engine step beside transformers' own cached forward pass, for the target and for the drafter.

    python benchmarks/engine_step.py [--rounds 60] [--context 200] [--threads 1] [--models FOLDER]

Every cell is a whole step: forward, choice, acceptance, rollback, against `model(input_ids, cache)` and an argmax,
without `generate` around it; and our greedy ones by torch's operations alone, without compiled kernels. All cells are
measured in turns, medians are taken; compare ratios. "8 x 5" are eight sequences with four drafted tokens and one true one
each. One thread by default: on a machine that does anything else besides, torch's threads wait for each other longer than
they gain.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import MODELS, Report, interleaved, medians, table, timed
from specfleet.core.step import StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine import EngineConfig, TorchEngine
from specfleet.engine.model import load

SHAPES = ((1, 1), (1, 5), (1, 9), (8, 1), (8, 5), (8, 9))
"""(sequences, rows of each)"""
SAMPLINGS = {"greedy": SamplingParams(temperature=0), "seeded": SamplingParams(temperature=0.8, top_p=0.95, seed=7)}


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(1, 4000, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def stock(folder: Path, context: int, rows: int) -> Callable[[], object]:
    """transformers' cached forward over `rows` new tokens, and their argmax."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    cache = DynamicCache(config=model.config)
    inputs = torch.tensor([tokens(rows, 1)])
    # The cache goes by place: transformers 5.24 calls it `cache`, those before `past_key_values`.

    @torch.inference_mode()
    def run() -> object:
        best = model(inputs, None, None, cache).logits.argmax(-1).tolist()
        cache.crop(-rows)
        return best

    with torch.inference_mode():
        model(torch.tensor([tokens(context, 0)]), None, None, cache)
    return run


class Bench:
    """An engine with eight sequences of `context` tokens, to which every run returns. `plain`: without compiled kernels."""

    def __init__(self, folder: Path, context: int, threads: int, plain: bool = False) -> None:
        model = load(str(folder), dtype="float32", backend="sdpa", uniform=True) if plain else None
        self.engine = TorchEngine(EngineConfig(model=str(folder), dtype="float32", threads=threads), model)
        self.context = context
        for sequence in range(8):
            prompt = tokens(context, sequence)
            self.engine.open(sequence, prompt)
            self.engine.step_sync([StepItem(sequence, prompt, SAMPLINGS["greedy"])])

    def step(self, sequences: int, rows: int, sampling: SamplingParams) -> Callable[[], object]:
        items = [StepItem(s, tokens(rows, 100 + s), sampling, draft=rows - 1) for s in range(sequences)]

        def run() -> object:
            results = self.engine.step_sync(items)
            for item in items:
                self.engine.truncate(item.sequence, self.context)
            return results

        return run

    @property
    def outside(self) -> float:
        """Share of the steps so far outside the forward pass."""
        counters = self.engine.counters
        return 1.0 - counters.forward_seconds / counters.step_seconds


def warm(run: Callable[[], object]) -> Callable[[], float]:
    """Times the second of two runs: the cell before has pushed this one's weights out of the caches."""
    once = timed(run)

    def second() -> float:
        run()
        return once()

    return second


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--context", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", type=Path, default=MODELS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = Report("engine_step")
    rows = [["step", "ms", "of transformers' 1 row", "of our 1 row"]]
    for name in ("tiny-target", "tiny-draft"):
        folder = arguments.models / name
        bench = Bench(folder, arguments.context, arguments.threads)
        plain = Bench(folder, arguments.context, arguments.threads, plain=True)
        runs = {f"transformers 1 x {n}": stock(folder, arguments.context, n) for n in (1, 9)}
        for kind, sampling in SAMPLINGS.items():
            runs |= {f"{kind} {n} x {k}": bench.step(n, k, sampling) for n, k in SHAPES}
        runs |= {f"plain greedy {n} x {k}": plain.step(n, k, SAMPLINGS["greedy"]) for n, k in SHAPES}
        found = medians(interleaved({key: warm(run) for key, run in runs.items()}, arguments.rounds, warmup=5))
        theirs, ours = found["transformers 1 x 1"], found["greedy 1 x 1"]
        rows += [[f"{name}: {k}", f"{v * 1e3:.2f}", f"{v / theirs:.2f}", f"{v / ours:.2f}"] for k, v in found.items()]
        report.figures[name] = {**found, "outside_forward": bench.outside}
        report.bar(f"{name}: our step of one row against transformers'", ours / theirs, 1.0, at_most=True)
        if name == "tiny-target":
            # Of one row's step by torch's operations: the compiled one's is less than half of it, and no reason to draft less.
            ratio = found["greedy 1 x 9"] / found["plain greedy 1 x 1"]
            report.bar("verification of 9 rows against 1 without compiled kernels", ratio, 1.4, at_most=True)
        for one in (bench, plain):
            one.engine.shutdown()
    table(rows)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
