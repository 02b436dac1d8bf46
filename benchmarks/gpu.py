"""The verifier's step on a GPU against the roofline, and speculation against target-only on the same card. Under 8 minutes.

    python benchmarks/gpu.py [--small] [--out FILE.json]

Needs Python, numpy, torch, transformers and triton. The target is of the 8-billion class: layers as large as Llama 3.1 8B's
(width 4096, 14336 feed-forward units, keys of 1024; heads of 64), 36 of them to make up for its vocabulary, made of our
tiny target by padding that leaves its function unchanged (`models.inflation`): so acceptance is a trained pair's. That is
checked first, on the CPU in float32 in a small size.

Floors, from rates measured here: *bytes* reads weights and KV once at the bandwidth of a large copy (bytes read and
written); *work* takes the longer of that and the arithmetic of each part, at the rate of a large bf16 product. From some 200
tokens a step on, the products are bound by arithmetic and no kernel comes near *bytes*.

Without a GPU, or with --small, everything runs in a small size: it shows that the script works, its figures say nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import MODELS, PROMPTS, Report, interleaved, medians, progress
from models.inflation import inflate
from specfleet.core.step import StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine import EngineConfig, TorchEngine
from specfleet.engine.attention import AttentionContext, Look, check_backend, paged_attention
from specfleet.engine.batch import Span, StepBatch
from specfleet.engine.device import device_name
from specfleet.engine.kv_pool import KVPool, LayerShape
from specfleet.engine.memory import page_bytes
from specfleet.engine.model import LoadedModel, adapt

GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True)
class Size:
    layers: int
    hidden: int
    heads: tuple[int, int]
    intermediate: int
    sequences: int
    context: int
    tokens: int
    """Written by each sequence where speeds are compared."""
    rounds: int
    copy_bytes: int
    product: int
    """Rows and columns of the product that measures the arithmetic."""


FULL = Size(36, 4096, (64, 16), 14336, 64, 1024, 128, 20, 4 << 30, 8192)
SMALL = Size(17, 448, (8, 2), 1280, 4, 40, 8, 1, 16 << 20, 256)
IDENTITY = Size(18, 448, (12, 3), 1536, 1, 0, 32, 1, 0, 0)
QUERIES = (1, 5)
"""Tokens of each sequence in a step: decoding, and verifying four drafted ones."""
DRAFTS = (2, 4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a small size, as on the CPU")
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # several spin against each other, and the CPU's share is small
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = SMALL if arguments.small or device.type == "cpu" else FULL
    report, began = Report("gpu"), time.monotonic()
    report.figures |= {"device": device_name(device), "torch": torch.__version__, "small": size is SMALL}
    for part in (identity, kernel, floors_and_steps):
        part(report, arguments.models, device, size)
        report.figures["seconds"] = round(time.monotonic() - began, 1)
        progress(f"{part.__name__} done after {report.figures['seconds']} s")
    code = report.finish()
    if arguments.out:
        arguments.out.write_text(json.dumps(vars(report), indent=1) + "\n")
    return code


# Is it the same function? Is it the same attention? -------------------------------------------------------------------


def identity(report: Report, models: Path, device: torch.device, size: Size) -> None:
    """The padded target writes what the tiny one writes, in float32 on the CPU."""
    tiny = LlamaForCausalLM.from_pretrained(models / "tiny-target", dtype=torch.float32)
    text = prompts(models, 1)[0]
    found = []
    for module in (padded(tiny, IDENTITY), tiny):  # the tiny one last: `adapt` uses it up
        engine = TorchEngine(EngineConfig(model="", kv_cache_tokens=1024), adapt(module, "", torch.device("cpu")))
        engine.open(0, text)
        steps = engine.extend_sync([StepItem(0, text, GREEDY)], IDENTITY.tokens)[0]
        found.append([result.tokens[0] for result in steps])
        engine.shutdown()
    same = sum(one == other for one, other in zip(*found, strict=True))
    report.bar("greedy ids that the padded target shares with the tiny one, float32", same / IDENTITY.tokens, 1.0)


def kernel(report: Report, models: Path, device: torch.device, size: Size) -> None:
    """The Triton kernel on this device against gathered, masked attention in float32, over ragged steps with trees."""
    try:
        check_backend("triton", device)
    except Exception as error:  # noqa: BLE001 - no Triton here: said, and the rest goes on
        report.figures["kernel"] = str(error)
        print(f"kernel not checked: {error}")
        return
    share, longest = (4, 1500) if device.type == "cuda" else (3, 40)
    rows, worst = [["kernel against reference", "relative error", "bar"]], 0.0
    for dtype, bar in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        for name, look, splits, dim in (
            ("plain", Look(0.125, None, None), 1, 64),
            ("keys in 4 parts", Look(0.125, None, None), 4, 64),
            ("window, soft cap", Look(0.125, 20, 5.0), 2, 64),
            ("heads of 128", Look(0.09, None, None), 1, 128),
        ):
            off = kernel_error(device, dtype, look, splits, (share, dim, longest))
            worst = max(worst, off / bar)
            rows.append([f"{str(dtype).removeprefix('torch.')}, {name}", f"{off:.1e}", f"{bar:.0e}"])
    report.table("The Triton kernel, ragged steps with token trees.", rows)
    report.bar("largest error of the kernel over what is allowed", worst, 1.0, at_most=True)


def kernel_error(
    device: torch.device, dtype: torch.dtype, look: Look, splits: int, shape: tuple[int, int, int]
) -> float:
    """Norm of the difference over norm of the reference, on fresh noise."""
    share, dim, longest = shape
    spans, page = [], 0
    for count, start, leaves in ((1, 0, 0), (5, longest, 0), (9, longest // 2, 3), (33, 7, 0), (1, longest, 0)):
        pages = list(range(page, page + -(-(start + count) // 16)))
        page += len(pages)
        spans.append(Span([1] * count, start, pages[::-1], 1, [start + 1 + n for n in range(leaves)]))
    batch = StepBatch(spans, device)
    found = []
    noise = torch.randn(2, page, 16, 2, dim, device=device).to(dtype)
    query = torch.randn(batch.tokens, 2 * share, dim, device=device).to(dtype)
    new = torch.randn(2, batch.tokens, 2, dim, device=device).to(dtype)
    for backend, kind in (("triton", dtype), ("sdpa", torch.float32)):
        pool = KVPool([LayerShape(2, dim, dim)], page, kind, device)
        pool.keys[0].copy_(noise[0])
        pool.values[0].copy_(noise[1])
        context = AttentionContext(batch, pool, backend, splits)
        found.append(paged_attention(context, 0, query.to(kind), new[0].to(kind), new[1].to(kind), look).float())
    error = (found[0] - found[1]).norm() / found[1].norm()
    return float(error) if torch.isfinite(error) else float("inf")


# How fast? ------------------------------------------------------------------------------------------------------------


def floors_and_steps(report: Report, models: Path, device: torch.device, size: Size) -> None:
    dtype = torch.bfloat16
    tiny = LlamaForCausalLM.from_pretrained(models / "tiny-target", dtype=dtype).to(device)
    target = adapt(padded(tiny, size), "padded target", device)
    del tiny
    release()
    rates = bandwidth(device, size.copy_bytes), arithmetic(device, size.product)
    report.figures |= {"copy_bytes_per_second": rates[0], "flops_per_second": rates[1], "parameters": target.parameters}
    report.figures["attention"] = target.backend
    room = size.sequences * (size.context + size.tokens + 64) + 4096
    engines = {}
    for name, graphs in (("without graphs", False), ("with graphs", True)):
        if graphs and device.type == "cuda" and target.backend != "triton":
            continue
        began = time.monotonic()
        config = EngineConfig(model="", kv_cache_tokens=room, graphs=graphs)
        engines[name] = TorchEngine(config, target)
        report.figures[f"{name}: seconds to start"] = round(time.monotonic() - began, 1)
        fill(engines[name], size)
    best = steps(report, engines, target, size, rates)
    for engine in engines.values():
        for sequence in range(size.sequences):
            engine.close(sequence)
    speeds(report, models, engines[best], device, size)


def steps(
    report: Report, engines: dict[str, TorchEngine], target: LoadedModel, size: Size, rates: tuple[float, float]
) -> str:
    """Times of a whole step and of its forward pass beside both floors. Returns which engine is faster."""
    runs: dict[str, Callable[[], float]] = {}
    for name, engine in engines.items():
        for queries in QUERIES:
            runs[f"{name}, {size.sequences} x {queries}: step"] = step(engine, size, queries)
            runs[f"{name}, {size.sequences} x {queries}: forward"] = forward(engine, size, queries)
    found = medians(interleaved(runs, size.rounds, warmup=3))
    rows = [["", "ms", "of the bytes floor", "of the work floor"]]
    for queries in QUERIES:
        floors = floor_seconds(target, size, queries, rates)
        rows.append([f"floor of bytes, {size.sequences} x {queries}", f"{floors[0] * 1e3:.3f}", "1.00", ""])
        rows.append([f"floor of work, {size.sequences} x {queries}", f"{floors[1] * 1e3:.3f}", "", "1.00"])
        for line, seconds in found.items():
            if f"x {queries}:" in line:
                ratios = [seconds / floor for floor in floors]
                rows.append([line, f"{seconds * 1e3:.3f}", *(f"{ratio:.2f}" for ratio in ratios)])
                report.figures[line] = {"seconds": seconds, "of_bytes": ratios[0], "of_work": ratios[1]}
    report.table(f"A step of {size.sequences} sequences at context {size.context}, bf16.", rows)
    last = max(QUERIES)
    best = min(engines, key=lambda name: found[f"{name}, {size.sequences} x {last}: step"])
    if size is FULL:
        line = f"{best}, {size.sequences} x {last}: step"
        bytes_floor, work_floor = floor_seconds(target, size, last, rates)
        report.bar(f"{line}, of the bytes floor", found[line] / bytes_floor, 1.3, at_most=True)
        report.bar(f"{line}, of the work floor", found[line] / work_floor, 1.3, at_most=True)
    return best


def floor_seconds(target: LoadedModel, size: Size, queries: int, rates: tuple[float, float]) -> tuple[float, float]:
    """(bytes, work): see the module's docstring. A token's embedding is a row; the tied output layer is read."""
    per_second, flops = rates
    weights = target.parameters * target.dtype.itemsize
    keys = size.sequences * (size.context + queries) * page_bytes(target.layers, target.dtype) // 16
    arithmetic = 2 * target.parameters * size.sequences * queries / flops
    return (weights + keys) / per_second, max(weights / per_second, arithmetic) + keys / per_second


def speeds(report: Report, models: Path, target: TorchEngine, device: torch.device, size: Size) -> None:
    """Tokens a second of all sequences together, alone and with the tiny drafter on the same device."""
    draft = TorchEngine(
        EngineConfig(
            model=str(models / "tiny-draft"),
            device=str(device),
            dtype="bfloat16",
            kv_cache_tokens=size.sequences * (size.tokens + 128),
        )
    )
    texts = prompts(models, size.sequences)
    write(target, None, texts, 4, 0)  # whatever is still to be compiled
    alone, seconds, _ = write(target, None, texts, size.tokens, 0)
    count = size.sequences * size.tokens
    rows = [["", "tokens/s", "over target-only", "accepted of drafted", "same texts"]]
    rows.append(["target-only", f"{count / seconds:.0f}", "1.00", "", ""])
    report.figures["target-only tokens_per_second"] = count / seconds
    for length in DRAFTS:
        write(target, draft, texts, 4, length)
        found, took, accepted = write(target, draft, texts, size.tokens, length)
        same = sum(one == other for one, other in zip(alone, found, strict=True)) / len(texts)
        line = f"drafts of {length}"
        rows.append([line, f"{count / took:.0f}", f"{seconds / took:.2f}", f"{accepted:.1%}", f"{same:.0%}"])
        report.figures[line] = {
            "tokens_per_second": count / took,
            "over_target_only": seconds / took,
            "accepted": accepted,
            "same_texts": same,
        }
    report.table(
        f"{size.sequences} greedy streams of {size.tokens} tokens, drafter and target on one device, no network. In bf16 "
        "near-ties may flip between a decode and a verification: `same texts` is the share equal to the last token.",
        rows,
    )
    draft.shutdown()


def write(
    target: TorchEngine, draft: TorchEngine | None, prompts: Sequence[list[int]], count: int, length: int
) -> tuple[list[list[int]], float, float]:
    """`count` tokens behind each prompt: (texts, seconds without the prompts, share of drafted tokens accepted)."""
    texts = [list(prompt) for prompt in prompts]
    for engine in (target, draft):
        for number, text in enumerate(texts if engine else ()):
            engine.open(number, text)
            if len(text) - 1 > engine.length(number):
                engine.step_sync([StepItem(number, text[engine.length(number) : -1], GREEDY, sample=False)])
    drafted = accepted = 0
    began = time.perf_counter()
    while going := [n for n, text in enumerate(texts) if len(text) < len(prompts[n]) + count]:
        guesses: list[list[int]] = [[] for _ in going]
        if draft is not None:
            items = [StepItem(n, texts[n][draft.length(n) :], GREEDY) for n in going]
            guesses = [[result.tokens[0] for result in row] for row in draft.extend_sync(items, length)]
        items = [
            StepItem(n, [texts[n][-1], *guess], GREEDY, draft=len(guess))
            for n, guess in zip(going, guesses, strict=True)
        ]
        for item, guess, result in zip(items, guesses, target.step_sync(items), strict=True):
            known = len(texts[item.sequence])
            texts[item.sequence] += result.tokens
            drafted, accepted = drafted + len(guess), accepted + result.accepted
            if draft is not None:  # what it computed of guesses that were refused is forgotten
                draft.truncate(item.sequence, min(draft.length(item.sequence), known + result.accepted))
    seconds = time.perf_counter() - began
    for engine in (target, draft):
        for number in range(len(texts) if engine else 0):
            engine.close(number)
    cut = [text[: len(prompt) + count] for text, prompt in zip(texts, prompts, strict=True)]
    return cut, seconds, accepted / max(1, drafted)


# Parts ----------------------------------------------------------------------------------------------------------------


def padded(module: LlamaForCausalLM, size: Size) -> LlamaForCausalLM:
    return inflate(module, size.layers, size.hidden, heads=size.heads, intermediate=size.intermediate)


def prompts(models: Path, count: int) -> list[list[int]]:
    """Ids of our own prompts, over and over, each with a number of its own so that no two texts are the same."""
    tokenizer: Any = AutoTokenizer.from_pretrained(models / "tiny-target")
    texts = [PROMPTS[n % len(PROMPTS)] for n in range(count)]
    return [tokenizer(text if n < len(PROMPTS) else f"{n}. {text}")["input_ids"] for n, text in enumerate(texts)]


def fill(engine: TorchEngine, size: Size) -> None:
    """Sequences of `context` tokens of noise, all different."""
    for sequence in range(size.sequences):
        tokens = noise(size.context, sequence)
        engine.open(sequence, tokens)
        for at in range(0, size.context, 512):
            engine.step_sync([StepItem(sequence, tokens[at : at + 512], GREEDY, sample=False)])


def step(engine: TorchEngine, size: Size, queries: int) -> Callable[[], float]:
    """Seconds of forward, choice, acceptance, rollback."""
    items = [StepItem(s, noise(queries, 1000 + s), GREEDY, draft=queries - 1) for s in range(size.sequences)]

    def once() -> float:
        began = time.perf_counter()
        engine.step_sync(items)  # ends by reading ids from the device
        seconds = time.perf_counter() - began
        for item in items:
            engine.truncate(item.sequence, size.context)
        return seconds

    return once


def forward(engine: TorchEngine, size: Size, queries: int) -> Callable[[], float]:
    """Seconds to logits on the device, batch building included."""
    items = [StepItem(s, noise(queries, 2000 + s), GREEDY, draft=queries - 1) for s in range(size.sequences)]

    def once() -> float:
        began = time.perf_counter()
        engine.forward(items)
        synchronize()
        seconds = time.perf_counter() - began
        for item in items:
            engine.truncate(item.sequence, size.context)
        return seconds

    return once


def noise(count: int, seed: int) -> list[int]:
    return torch.randint(1, 4000, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second of a large copy, read and written ones counted."""
    source = torch.randn(size // 4, device=device)
    into = torch.empty_like(source)
    return 2 * size / fastest(lambda: into.copy_(source))


def arithmetic(device: torch.device, size: int) -> float:
    """Operations a second of a large bf16 product of noise."""
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return 2 * size**3 / fastest(lambda: left @ right)


def fastest(run: Callable[[], object]) -> float:
    """Median seconds of ten runs after three."""
    found = []
    for number in range(13):
        synchronize()
        began = time.perf_counter()
        run()
        synchronize()
        if number >= 3:
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
