"""Steps through buckets and persistent buffers, as CUDA graphs run them, against plain steps: the same tokens. Nothing is
captured here; every replay is a new forward pass over the same buffers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from specfleet.core.step import Alternative, StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine import EngineConfig, TorchEngine
from specfleet.engine.graphs import Graphs, StaticBatch
from specfleet.engine.testing import VOCABULARY, save_tiny_model
from support.pair import TARGET

GREEDY, SEEDED = SamplingParams(temperature=0.0), SamplingParams(seed=11, temperature=0.9, top_p=0.95)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def engine(folder: Path, **settings: object) -> TorchEngine:
    return TorchEngine(EngineConfig(model=str(folder), kv_cache_tokens=4096, **settings))  # type: ignore[arg-type]


def texts_of(one: TorchEngine, vocabulary: int, sampling: SamplingParams, steps: int) -> tuple[list[list[int]], int]:
    """What eight sequences become in steps of prompts in chunks, drafts of several lengths and trees, with sequences that come
    and go; and how many drafted tokens were accepted. The same course for every engine that writes the same text."""
    random = np.random.default_rng(3)
    texts = [random.integers(1, vocabulary, size).tolist() for size in (3, 30, 17, 64, 5, 100, 16, 40)]
    accepted = 0
    for number, text in enumerate(texts):
        one.open(number, text)
    for step in range(steps):
        items = []
        for number, text in enumerate(texts):
            if (step + number) % 5 == 4:
                continue
            rest = text[one.length(number) :]
            if len(rest) > 40:
                items.append(StepItem(number, rest[:40], sampling, sample=False))
                continue
            # Repeats what was there before: sometimes right in such texts, mostly wrong.
            draft = text[-number:] if number else []
            others = [Alternative(at, (token + 1) % vocabulary) for at, token in enumerate(draft)][: number % 3]
            items.append(StepItem(number, [*rest, *draft], sampling, draft=len(draft), alternatives=others))
        for item, result in zip(items, one.step_sync(items), strict=True):
            texts[item.sequence] += result.tokens
            accepted += result.accepted
    one.check_integrity()
    return texts, accepted


@pytest.mark.parametrize(("sampling", "deterministic"), [(GREEDY, False), (SEEDED, False), (SEEDED, True)])
def test_the_real_target_writes_the_same_padded_and_not(
    sampling: SamplingParams, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy and seeded, through trees, right and wrong drafts, and prompts in chunks."""
    plain, padded = engine(TARGET), engine(TARGET, graphs=True, deterministic=deterministic)
    filled, fill = [], Graphs.fill

    def watched(self: Graphs, spans: object) -> object:
        filled.append(fill(self, spans))  # type: ignore[arg-type]
        return filled[-1]

    monkeypatch.setattr(Graphs, "fill", watched)

    expected, accepted = texts_of(plain, 4096, sampling, 24)
    found, _ = texts_of(padded, 4096, sampling, 24)

    assert expected == found
    assert sum(one is not None for one in filled) > 15  # the rest are too large or too unlike any bucket
    assert accepted > 0


def test_the_kernel_reads_only_what_stays_in_place(tmp_path: Path) -> None:
    """On the Triton kernel all that a step gives the model is in the buffers: no tensor of indices that the forward
    pass sees is another one than when the bucket was captured."""
    pytest.importorskip("triton", reason="the kernel is Triton's")
    if torch.cuda.is_available():
        pytest.skip("float32 on the CPU; benchmarks/gpu.py checks the device")
    folder = save_tiny_model(tmp_path, "llama", num_hidden_layers=1, max_position_embeddings=256)
    plain, graphs = engine(folder), engine(folder, attention="triton", graphs=True)
    batches = graphs._worker.graphs._batches.values()  # type: ignore[union-attr]
    for batch in batches:
        batch.tiles(batch.most_queries)  # the model has two query heads to a key head: what a capture's run asks for
    before = [addresses(batch) for batch in batches]

    expected, _ = texts_of(plain, VOCABULARY, SEEDED, 10)
    found, _ = texts_of(graphs, VOCABULARY, SEEDED, 10)

    assert expected == found
    assert before == [addresses(batch) for batch in batches]


def addresses(batch: StaticBatch) -> list[int]:
    held = [batch.token_ids, batch.position_ids, batch.slots, batch.logit_rows]
    for _, _, tiles in batch._tiles.values():
        held += [tiles.table, tiles.positions, tiles.places, tiles.pages]
    return [tensor.data_ptr() for tensor in held]


def test_progress_is_told_of_every_bucket(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    one = TorchEngine(
        EngineConfig(model=str(save_tiny_model(tmp_path)), kv_cache_tokens=512, graphs=True),
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(n, len(told)) for n in range(1, len(told) + 1)]
    assert len(told) == len(one._worker.graphs.buckets)  # type: ignore[union-attr]
