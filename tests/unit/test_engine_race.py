"""The seeded rule without sorting: the same tokens as by sorting, whatever is cut off and however flat a row is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from specfleet.engine.noise import gumbel_reference, noise_keys
from specfleet.engine.race import NOBODY, seeded_argmax, seeded_argmax_of_all
from specfleet.engine.sampling import Truncation

CPU = torch.device("cpu")
ROWS, VOCABULARY = 48, 1000
KEYS = noise_keys([5] * ROWS, range(ROWS), CPU)
GRID = [
    Truncation(*values)
    for values in itertools.product((0.3, 1.0, 1.7), (0, 1, 20), (1.0, 0.999, 0.9, 0.5, 1e-6), (0.0, 0.1, 1.0))
]


def logits(spread: float) -> torch.Tensor:
    """Every third row full of ties."""
    rows = np.random.default_rng(2).normal(0, spread, (ROWS, VOCABULARY)).astype(np.float32)
    rows[::3] = rows[::3].round(1)
    return torch.from_numpy(rows)


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("truncation", GRID, ids=str)
def test_the_race_is_won_by_the_argmax_of_all(truncation: Truncation, spread: float) -> None:
    """First and second are those of a full sort with noise everywhere."""
    expected = seeded_argmax_of_all(logits(spread), truncation, KEYS, runners_up=True)

    found = seeded_argmax(logits(spread), truncation, KEYS, runners_up=True)

    assert [one.tolist() for one in expected] == [one.tolist() for one in found]


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p"), [(0.8, 0, 0.95, 0.0), (1.3, 50, 0.9, 0.02)])
def test_the_winner_is_that_of_transformers_processors(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """argmax(log p + G) with p by transformers and G by the definition."""
    rows = torch.from_numpy(np.random.default_rng(4).normal(0, 2.0, (ROWS, VOCABULARY)).astype(np.float32))
    scores = TemperatureLogitsWarper(temperature)(None, rows)
    scores = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k or VOCABULARY)(None, scores))
    p = (MinPLogitsWarper(min_p)(None, scores) if min_p else scores).log_softmax(-1).numpy()
    noise = np.array([gumbel_reference(5, row, np.arange(VOCABULARY)) for row in range(ROWS)])

    expected = (p + noise).argmax(-1)

    found, _ = seeded_argmax(rows, Truncation(temperature, top_k, top_p, min_p), KEYS)
    assert expected.tolist() == found.tolist()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Peaked and flat rows take different ways; each is what it is alone."""
    rows = torch.cat([logits(4.0)[:24], logits(0.01)[24:]])
    truncation = Truncation(0.8, 0, 0.9, 0.0)

    expected = [seeded_argmax(rows[i : i + 1], truncation, KEYS[i : i + 1], True) for i in range(ROWS)]

    first, second = seeded_argmax(rows, truncation, KEYS, True)
    assert [(int(a), int(b)) for a, b in expected] == list(zip(first.tolist(), second.tolist(), strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_row_that_is_not_finite_disturbs_no_other(bad: float, top_p: float) -> None:
    """Logits that are no numbers are refused elsewhere; until then every other row keeps its token."""
    truncation = Truncation(1.0, 0, top_p, 0.01)
    rows = logits(2.0)
    expected, _ = seeded_argmax(rows, truncation, KEYS)
    rows[2, :], rows[7, 5] = bad, torch.nan

    found, _ = seeded_argmax(rows, truncation, KEYS)

    others = [row for row in range(ROWS) if row not in (2, 7)]
    assert expected[others].tolist() == found[others].tolist()


def test_nobody_but_bad_rows() -> None:
    """A step of which no row is finite still gives every row something."""
    first, second = seeded_argmax(torch.full((3, 10), torch.nan), Truncation(1.0, 0, 0.9, 0.0), KEYS[:3], True)

    assert [NOBODY] * 3 == first.tolist() == second.tolist()
