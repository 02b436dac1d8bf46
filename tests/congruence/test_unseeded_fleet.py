"""Unseeded sampling through verifier and drafter: the text has exactly the target's distribution, whatever the mode."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from specfleet.core.types import SamplingParams
from specfleet.core.vocabulary import Vocabulary
from specfleet.engine import EngineConfig, TorchEngine
from specfleet.engine.testing import save_tiny_model, stock_model
from support.fleet import fleet

SIZE = 6
TOKENS = 4
SAMPLES = 1200
PROMPT = (1, 2, 3)
TABLE = Vocabulary(tuple(f"t{i}" for i in range(SIZE)), ())


def exact(path: Path, temperature: float) -> dict[tuple[int, ...], float]:
    """The target's probability of each pair of third and fourth output tokens, by summing over all texts."""
    texts = torch.tensor(list(itertools.product(range(SIZE), repeat=TOKENS)))
    prompts = torch.tensor(PROMPT).expand(len(texts), -1)
    with torch.inference_mode():
        logits = stock_model(path)(input_ids=torch.cat([prompts, texts], 1), use_cache=False).logits
    logs = torch.log_softmax(logits[:, len(PROMPT) - 1 : -1].double() / temperature, -1)
    chances = logs.gather(-1, texts[:, :, None]).sum((1, 2)).exp()
    found: dict[tuple[int, ...], float] = Counter()
    for text, chance in zip(texts.tolist(), chances.tolist(), strict=True):
        found[tuple(text[-2:])] += chance
    return found


@pytest.mark.parametrize("speculator", ["model", "ngram"])
@pytest.mark.parametrize("policy", ["fixed:2", "fixed:3", "stream", "random"])
@pytest.mark.asyncio
async def test_distribution_is_the_targets_own(tmp_path: Path, policy: str, speculator: str) -> None:
    """Chi-square of the last two of four tokens over many generations against the exact distribution, p > 0.001."""
    small = {"vocab_size": SIZE, "eos_token_id": SIZE - 1, "num_hidden_layers": 2}
    target = save_tiny_model(tmp_path / "p", seed=1, **small)
    draft = save_tiny_model(tmp_path / "q", seed=2, **small)
    sampling = SamplingParams(max_tokens=TOKENS, temperature=1.3, ignore_eos=True)
    expected = exact(target, sampling.temperature)
    engines = [
        TorchEngine(EngineConfig(model=str(path), kv_cache_tokens=4096, seed=seed, threads=1))
        for seed, path in enumerate((target, draft))
    ]
    room = asyncio.Semaphore(24)
    async with fleet(policy, speculator=speculator, engines=(engines[0], engines[1]), vocabulary=TABLE) as one:

        async def last_two() -> tuple[int, ...]:
            async with room:
                return tuple((await one.generate(PROMPT, sampling))[-2:])

        counts = Counter(await asyncio.gather(*(last_two() for _ in range(SAMPLES))))
    for engine in engines:
        engine.shutdown()
    pairs = sorted(expected, key=lambda pair: expected[pair])
    # Rare pairs share a cell: chi-square wants about five expected counts in each.
    cells = np.array_split(np.array(pairs), 12)
    observed = [sum(counts[tuple(map(int, pair))] for pair in cell) for cell in cells]
    wanted = [sum(expected[tuple(map(int, pair))] for pair in cell) * SAMPLES for cell in cells]
    assert SAMPLES == sum(observed)
    assert stats.chisquare(observed, wanted, sum_check=False).pvalue > 0.001
