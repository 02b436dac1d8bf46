"""The engine on our own attention kernels against the engine on `sdpa`: the same steps through both. Without a GPU Triton's
kernel runs in its interpreter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from specfleet.core.step import Alternative, StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine import EngineConfig, TorchEngine
from specfleet.engine.testing import VOCABULARY, save_tiny_model

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="float32 on the CPU; benchmarks/gpu.py checks the device"
)
GREEDY, SEEDED = SamplingParams(temperature=0.0), SamplingParams(seed=11, temperature=0.9, top_p=0.95)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def engines(backend: str, folder: Path, deterministic: bool = False) -> list[TorchEngine]:
    pytest.importorskip(backend)
    config = {"model": str(folder), "kv_cache_tokens": 1024, "deterministic": deterministic}
    return [TorchEngine(EngineConfig(attention=name, **config)) for name in ("sdpa", backend)]


@pytest.mark.parametrize(
    ("backend", "family", "deterministic"),
    [
        ("triton", "llama", False),
        ("triton", "llama", True),
        ("triton", "qwen2-window", False),
        ("triton", "gemma2", False),
        ("numba", "llama", False),
        ("numba", "llama", True),
        ("numba", "qwen2-window", False),
        ("numba", "qwen3", False),
        ("numba", "gpt-neox", False),
        ("numba", "mistral-window", False),
        ("numba", "llama-untied", False),
    ],
)
def test_steps_with_prefill_verification_and_trees_have_the_same_logits(
    backend: str, family: str, deterministic: bool, tmp_path: Path
) -> None:
    """Through transformers' own modules and through the fused decoder, with sliding windows and soft caps."""
    pair = engines(backend, save_tiny_model(tmp_path, family, rounded=family != "llama-untied"), deterministic)
    random = np.random.default_rng(7)
    texts = [random.integers(0, VOCABULARY, size).tolist() for size in (1, 16, 47, 70)]
    first = [StepItem(n, text, GREEDY, draft=min(2, len(text) - 1)) for n, text in enumerate(texts)]
    second = []
    for number in range(len(texts)):
        draft = random.integers(0, VOCABULARY, (0, 1, 4, 8)[number]).tolist()
        others = [Alternative(at, (token + 1) % VOCABULARY) for at, token in enumerate(draft) if at % 2 == 0]
        second.append(StepItem(number, [5, *draft], GREEDY, draft=len(draft), alternatives=others))

    found = []
    for engine in pair:
        for item in first:
            engine.open(item.sequence, item.tokens)
        found.append(torch.cat([engine.forward(first), engine.forward(second)]))

    assert {"sdpa", backend} == {engine.model.backend for engine in pair}
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["triton", "numba"])
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED])
def test_text_is_the_same(sampling: SamplingParams, backend: str, tmp_path: Path) -> None:
    """Drafts that are right and wrong, rolled back across pages."""
    texts = []
    for engine in engines(backend, save_tiny_model(tmp_path, "qwen3")):
        text = [7, 3, 5]
        engine.open(0, text)
        while len(text) < 40:
            draft = [(text[-1] * 7 + n) % VOCABULARY for n in range(3)]
            known = text[engine.length(0) :]
            text += engine.step_sync([StepItem(0, [*known, *draft], sampling, draft=3)])[0].tokens
        texts.append(text)
        engine.check_integrity()
    assert texts[0] == texts[1]
