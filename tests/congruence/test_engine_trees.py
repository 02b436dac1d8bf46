"""Token trees in the engine: the forward pass with an ancestor mask against one plain forward pass for each path, and whole
steps against the target decoding alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from specfleet.core.errors import InvalidRequest
from specfleet.core.step import Alternative, StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine import EngineConfig, TorchEngine
from specfleet.engine.testing import VOCABULARY, save_tiny_model, stock_logits, stock_model

GREEDY, SEEDED = SamplingParams(temperature=0.0), SamplingParams(seed=11, temperature=0.9, top_p=0.95)
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tree(random: np.random.Generator, draft: list[int], most: int) -> list[Alternative]:
    """Other tokens at random places, none twice."""
    found = {
        Alternative(int(random.integers(len(draft))), int(random.integers(VOCABULARY))) for _ in range(most) if draft
    }
    return [one for one in found if draft[one.offset] != one.token]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma", "qwen2-window"])
def test_the_ancestor_mask_computes_each_path_alone(family: str, deterministic: bool, tmp_path: Path) -> None:
    """Trees of several sequences beside plain ones in one step: every row of the draft is the stock model's, and that of an
    alternative is the stock model's of the path that ends in it. With sliding windows, soft caps, in passes of one shape."""
    folder = save_tiny_model(tmp_path, family)
    engine, stock = TorchEngine(EngineConfig(model=str(folder), deterministic=deterministic)), stock_model(folder)
    random = np.random.default_rng(len(family))
    texts = {n: random.integers(0, VOCABULARY, size).tolist() for n, size in enumerate((3, 15, 16, 40, 70, 20, 33))}
    items = []
    for number, text in texts.items():
        engine.open(number, text)
        if len(text) > 1:
            engine.forward([StepItem(number, text[:-1], GREEDY, sample=False)])
        draft = random.integers(0, VOCABULARY, (0, 1, 4, 8, 8, 8, 8)[number]).tolist()
        alternatives = tree(random, draft, 6) if number != 3 else []
        items.append(StepItem(number, [text[-1], *draft], GREEDY, draft=len(draft), alternatives=alternatives))
    assert sum(len(item.tokens) + len(item.alternatives) for item in items) > 64  # so that passes cut a tree in two

    logits, row = engine.forward(items).numpy(), 0

    for item in items:
        text, draft = texts[item.sequence], list(item.tokens[1:])
        paths = [[*text, *draft[:n]] for n in range(len(draft) + 1)]
        paths += [[*text, *draft[: one.offset], one.token] for one in item.alternatives]
        for path in paths:
            expected = stock_logits(stock, path)[-1].numpy()
            np.testing.assert_allclose(logits[row], expected, rtol=0, atol=TOLERANCE)
            assert expected.argmax() == logits[row].argmax()
            row += 1
    assert row == len(logits)


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED])
@pytest.mark.parametrize("deterministic", [False, True])
def test_text_written_through_trees_is_the_targets_own(
    sampling: SamplingParams, deterministic: bool, tmp_path: Path
) -> None:
    """Drafts that are right, wrong and right by an alternative, over many pages: the same ids and log-probabilities as token
    by token; keys and values of accepted alternatives serve later steps, and whoever shares the prefix."""
    folder = save_tiny_model(tmp_path, "qwen3")
    sampling = SamplingParams(temperature=sampling.temperature, seed=sampling.seed, top_p=sampling.top_p, logprobs=True)
    plain, engine = (TorchEngine(EngineConfig(model=str(folder), deterministic=deterministic)) for _ in range(2))
    prompt = [7, 3, 5, 2, 9]
    plain.open(0, prompt)
    alone = plain.extend_sync([StepItem(0, prompt, sampling)], 120)[0]
    own = [result.tokens[0] for result in alone]
    logprobs = [value for result in alone for value in result.logprobs or ()]
    random, text, found, rescued = np.random.default_rng(5), list(prompt), [], 0
    engine.open(0, prompt)
    while len(text) < len(prompt) + 100:
        known = text[engine.length(0) :]
        after = own[len(text) - len(prompt) :][:6]
        draft = [token if random.random() < 0.6 else (token + 1) % VOCABULARY for token in after]
        alternatives = [one for one in tree(random, draft, 3) if one.token != after[one.offset]]
        alternatives += [
            Alternative(at, token) for at, token in enumerate(after) if draft[at] != token and random.random() < 0.7
        ]
        item = StepItem(0, known + draft, sampling, draft=len(draft), alternatives=alternatives)
        result = engine.step_sync([item])[0]
        engine.check_integrity()
        wrong = next((at for at, token in enumerate(draft) if token != after[at]), len(draft))
        assert result.accepted == wrong
        assert result.alternative == (wrong < len(draft) and Alternative(wrong, after[wrong]) in alternatives)
        assert len(result.tokens) == result.accepted + result.alternative + 1
        assert engine.length(0) == len(text) + result.accepted + result.alternative
        rescued += result.alternative
        text += result.tokens
        found += result.logprobs or ()
    count = len(text) - len(prompt)
    assert own[:count] == text[len(prompt) :]
    np.testing.assert_allclose(found, logprobs[:count], rtol=0, atol=1e-4)
    assert rescued > 10
    assert engine.open(1, text) >= 96
    more = engine.extend_sync([StepItem(1, text[engine.length(1) :], sampling)], 5)[0]
    assert own[count : count + 5] == [result.tokens[0] for result in more]


def test_a_tree_that_cannot_be_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    """Beyond the draft, beyond the vocabulary, without a seed, of a text that is only scored."""
    engine = TorchEngine(EngineConfig(model=str(save_tiny_model(tmp_path, "llama"))))
    engine.open(0, [1, 2])
    wrong = (
        StepItem(0, [1, 2, 3], GREEDY, draft=1, alternatives=[Alternative(1, 4)]),
        StepItem(0, [1, 2, 3], GREEDY, draft=1, alternatives=[Alternative(0, VOCABULARY)]),
        StepItem(0, [1, 2, 3], SamplingParams(), draft=1, alternatives=[Alternative(0, 4)]),
        StepItem(0, [1, 2, 3], GREEDY, draft=1, score=True, alternatives=[Alternative(0, 4)]),
    )
    for item in wrong:
        with pytest.raises(InvalidRequest, match="alternative"):
            engine.step_sync([item])
    assert engine.length(0) == 0
