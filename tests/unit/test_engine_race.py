"""The seeded rule without sorting: the same tokens as by sorting, whatever is cut off and however flat a row is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from specfleet.engine import race
from specfleet.engine.noise import gumbel_reference, noise_keys
from specfleet.engine.race import NOBODY, SeededRows, seeded_argmax, seeded_argmax_of_all
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


def raced(
    rows: torch.Tensor, truncation: Truncation, positions: Sequence[int] = range(ROWS), runners_up: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """All of these rows, with the keys `KEYS` has for these positions."""
    count = len(rows)
    own = SeededRows(list(range(count)), [truncation] * count, [5] * count, list(positions)[:count])
    return seeded_argmax(rows, own, runners_up)[:2]


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("truncation", GRID, ids=str)
def test_the_race_is_won_by_the_argmax_of_all(truncation: Truncation, spread: float) -> None:
    """First and second are those of a full sort with noise everywhere."""
    expected = seeded_argmax_of_all(logits(spread), truncation, KEYS, runners_up=True)

    found = raced(logits(spread), truncation, runners_up=True)

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

    found, _ = raced(rows, Truncation(temperature, top_k, top_p, min_p))
    assert expected.tolist() == found.tolist()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Peaked and flat rows take different ways; each is what it is alone."""
    rows = torch.cat([logits(4.0)[:24], logits(0.01)[24:]])
    truncation = Truncation(0.8, 0, 0.9, 0.0)

    expected = [raced(rows[i : i + 1], truncation, [i], True) for i in range(ROWS)]

    first, second = raced(rows, truncation, runners_up=True)
    assert [(int(a), int(b)) for a, b in expected] == list(zip(first.tolist(), second.tolist(), strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_row_that_is_not_finite_disturbs_no_other(bad: float, top_p: float) -> None:
    """Logits that are no numbers are refused elsewhere; until then every other row keeps its token."""
    truncation = Truncation(1.0, 0, top_p, 0.01)
    rows = logits(2.0)
    expected, _ = raced(rows, truncation)
    rows[2, :], rows[7, 5] = bad, torch.nan

    found, _ = raced(rows, truncation)

    others = [row for row in range(ROWS) if row not in (2, 7)]
    assert expected[others].tolist() == found[others].tolist()


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan])
def test_a_single_bad_logit_shows(bad: float) -> None:
    """Of either sign, which integers would tell apart."""
    rows = logits(2.0)
    rows[2, 7] = bad
    own = SeededRows(list(range(ROWS)), [Truncation(1.0, 0, 0.9, 0.0)] * ROWS, [5] * ROWS, list(range(ROWS)))

    assert torch.equal(rows.amax(-1).isnan(), seeded_argmax(rows, own).largest.isnan())
    assert math.isnan(seeded_argmax(rows, own).largest[2])


def test_nobody_but_bad_rows() -> None:
    """A step of which no row is finite still gives every row something."""
    first, second = raced(torch.full((3, 10), torch.nan), Truncation(1.0, 0, 0.9, 0.0), runners_up=True)

    assert [NOBODY] * 3 == first.tolist() == second.tolist()


@pytest.mark.parametrize("compiled", [True, False])
def test_rows_of_many_requests_at_once(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with parameters, a seed and a position of its own, some rows of the step left out: as each would be alone. Seeds
    may take all their bits."""
    monkeypatch.setattr(race, "_COMPILES", compiled)
    rng, rows = np.random.default_rng(9), logits(2.0)
    before = rows.clone()
    own = SeededRows(
        rows=sorted(rng.choice(ROWS, 40, replace=False).tolist()),
        truncations=[GRID[n] for n in rng.integers(0, len(GRID), 40)],
        seeds=[2**64 - 1, 0, *(int(n) for n in rng.integers(0, 2**63, 38))],
        positions=[int(n) for n in rng.integers(0, 2**31, 40)],
    )
    keys = noise_keys(own.seeds, own.positions, CPU)
    alone = [
        seeded_argmax_of_all(rows[row : row + 1], truncation, keys[n : n + 1], True)
        for n, (row, truncation) in enumerate(zip(own.rows, own.truncations, strict=True))
    ]

    first, second, largest = seeded_argmax(rows, own, runners_up=True)

    assert [(int(a), int(b)) for a, b in alone] == list(zip(first.tolist(), second.tolist(), strict=True))
    assert torch.equal(rows[own.rows].amax(-1), largest)
    assert torch.equal(before, rows)
