"""Temperature, top-k, top-p, min-p: the same as transformers' logits processors, row by row."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from specfleet.engine.sampling import Truncation, _nucleus_cut, draw, process, top_support

VOCABULARY = 500


def logits(rows: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (rows, VOCABULARY)).astype(np.float32))


def stock(rows: torch.Tensor, truncation: Truncation) -> torch.Tensor:
    scores = TemperatureLogitsWarper(truncation.temperature)(None, rows)
    if truncation.top_k:
        scores = TopKLogitsWarper(truncation.top_k)(None, scores)
    if truncation.top_p < 1.0:
        scores = TopPLogitsWarper(truncation.top_p)(None, scores)
    if truncation.min_p > 0.0:
        scores = MinPLogitsWarper(truncation.min_p)(None, scores)
    return scores.softmax(-1)


GRID = [
    Truncation(*values)
    for values in itertools.product((0.3, 1.0, 1.7), (0, 1, 20, 10_000), (1.0, 0.95, 0.5, 1e-6), (0.0, 0.1, 1.0))
]


@pytest.mark.parametrize("truncation", GRID, ids=str)
def test_truncation_equals_transformers(truncation: Truncation) -> None:
    """Kept tokens and their probabilities are those of transformers' processors in the order of `generate`."""
    rows = logits()

    expected = stock(rows, truncation)

    found = process(rows, truncation).softmax(-1)
    assert torch.equal(expected > 0, found > 0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_wide_nucleus_is_sorted_in_full() -> None:
    """Where the first look at the likeliest tokens does not reach top_p, the answer is still transformers'."""
    rows = logits() * 0.01
    truncation = Truncation(1.0, 0, 0.9, 0.0)

    expected = stock(rows, truncation)

    assert 400 < int((expected[0] > 0).sum()) < VOCABULARY
    assert torch.equal(expected > 0, process(rows, truncation) > -torch.inf)


@pytest.mark.parametrize("spread", [0.01, 0.5, 3.0, 30.0])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.95, 0.999999])
def test_the_likeliest_alone_say_what_all_do(spread: float, top_p: float) -> None:
    """The least probability that stays is the same whether the likeliest few are sorted or every token, also where many are
    equally likely."""
    rows = np.random.default_rng(1).normal(0, spread, (20, 4096)).astype(np.float32)
    rows[10:] = rows[10:].round(1)
    p = torch.from_numpy(rows).softmax(-1)
    ascending = p.sort(-1).values
    gone = (ascending.cumsum(-1, dtype=torch.float64) <= 1.0 - top_p).sum(-1, keepdim=True)

    assert torch.equal(ascending.gather(-1, gone.clamp(max=4095)), _nucleus_cut(p, top_p))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """A row processed among others equals the row processed alone, bit for bit, though another row needs the full sort."""
    rows = torch.cat([logits(1), logits(1) * 0.01])
    truncation = Truncation(0.8, 0, 0.9, 0.0)

    assert torch.equal(process(rows, truncation)[:1], process(rows[:1], truncation))


def test_tokens_that_tie_with_the_last_one_kept_all_stay() -> None:
    """Which of two equal tokens stays is not left to a sort."""
    rows = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0]])

    assert (process(rows, Truncation(1.0, 2, 1.0, 0.0)) > -torch.inf).tolist() == [[True, True, True, True, False]]
    assert (process(rows, Truncation(1.0, 0, 0.8, 0.0)) > -torch.inf).tolist() == [[True, True, True, True, False]]


def test_the_smallest_temperatures_are_a_plain_argmax() -> None:
    """A temperature that float32 cannot divide by still gives the likeliest token all the probability."""
    rows = logits()

    found = process(rows, Truncation(1e-300, 0, 0.9, 0.0)).softmax(-1)

    assert torch.equal(rows.argmax(-1), found.argmax(-1))
    assert [1.0] * len(rows) == found.amax(-1).tolist()


def test_top_support_is_renormalised() -> None:
    """The drafter's truncated distribution sums to 1 over its support, likeliest first."""
    ids, logs = top_support(process(logits(), Truncation(1.0, 0, 1.0, 0.0)), 64)

    assert tuple(ids.shape) == (6, 64)
    torch.testing.assert_close(logs.exp().sum(-1), torch.ones(6))
    assert torch.equal(ids[:, 0], logits().argmax(-1))


def test_draws_follow_their_probabilities() -> None:
    """A token of probability 0 never wins and the others win in proportion."""
    generator = torch.Generator().manual_seed(1)
    p = torch.tensor([0.5, 0.0, 0.25, 0.25]).repeat(20_000, 1)

    counts = torch.bincount(draw(p, generator), minlength=4) / 20_000

    assert counts[1] == 0
    torch.testing.assert_close(counts, p[0], rtol=0, atol=0.015)
