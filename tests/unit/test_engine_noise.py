"""The shared noise of the match rule: exact integers everywhere, Gumbel in distribution, independent across its arguments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from specfleet.engine.noise import (
    _hash_torch,
    add_gumbel,
    gumbel,
    gumbel_reference,
    hash_bits,
    noise_key,
    noise_keys,
)

SEEDS = [0, 1, 7, 2**31, 2**63 - 1, 2**63, 2**64 - 1]
CPU = torch.device("cpu")


def reference_bits(seed: int, position: int, tokens: range) -> list[int]:
    """The 40 bits in Python's unbounded integers, straight from the definition."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    return [mix((noise_key(seed, position) + v * 0x9E3779B97F4A7C15) % 2**64) >> 24 for v in tokens]


@pytest.mark.parametrize("hashed", [_hash_torch, hash_bits])
def test_integers_are_exact(hashed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """Two's complement with masked shifts (accelerators) and numpy's unsigned integers (CPU) both give the exact bits."""
    positions = [0, 1, 12345, 2**20, 3, 4, 5]
    tokens = range(0, 200_000, 997)

    expected = [reference_bits(seed, position, tokens) for seed, position in zip(SEEDS, positions, strict=True)]

    assert expected == hashed(noise_keys(SEEDS, positions, CPU)[:, None], torch.tensor(list(tokens))).tolist()


def test_the_mixer_is_splitmix64() -> None:
    """The first outputs of splitmix64 seeded with 0 (reference values of the published generator)."""
    from specfleet.engine.noise import _mix

    state = [(i * 0x9E3779B97F4A7C15) % 2**64 for i in (1, 2, 3)]
    assert [_mix(x) for x in state] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("seed", SEEDS)
def test_torch_equals_numpy(seed: int) -> None:
    """The float32 noise of the batched version is the reference's, up to the logarithms' last bit."""
    tokens = np.arange(5000)

    expected = gumbel_reference(seed, 77, tokens)

    found = gumbel(noise_keys([seed], [77], CPU), torch.from_numpy(tokens))[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def test_candidates_get_the_noise_they_would_get_among_all() -> None:
    """Evaluated at a few ids per row, or at all: the same values."""
    keys = noise_keys([3, 9], [5, 6], CPU)
    candidates = torch.tensor([[4000, 1, 77], [0, 5, 4999]])

    expected = gumbel(keys, torch.arange(5000)).gather(-1, candidates)

    assert torch.equal(expected, gumbel(keys, candidates))


def test_noise_for_whole_rows_is_noise_for_each() -> None:
    """Rows are taken a few at a time; each gets its own noise."""
    scores, keys = torch.zeros(21, 300), noise_keys(range(21), [4] * 21, CPU)

    expected = gumbel(keys, torch.arange(300))

    add_gumbel(scores, keys)
    assert torch.equal(expected, scores)


def test_noise_is_gumbel_distributed() -> None:
    """Kolmogorov-Smirnov along tokens, along positions and along seeds: p > 0.001 each."""
    along_tokens = gumbel_reference(1, 1, np.arange(20_000))
    along_positions = np.array([gumbel_reference(1, t, np.array([17]))[0] for t in range(5000)])
    along_seeds = np.array([gumbel_reference(s, 3, np.array([17]))[0] for s in range(5000)])

    for sample in (along_tokens, along_positions, along_seeds):
        assert stats.kstest(sample.astype(np.float64), "gumbel_r").pvalue > 0.001


def test_neighbours_are_uncorrelated() -> None:
    """Noise at (seed, position, token) says nothing about its neighbours in any argument."""
    base = gumbel_reference(5, 10, np.arange(20_000))
    others = [gumbel_reference(6, 10, np.arange(20_000)), gumbel_reference(5, 11, np.arange(20_000)), np.roll(base, 1)]

    for other in others:
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.03


def test_extremes_stay_finite() -> None:
    """The smallest and largest hash give finite noise."""
    w = np.array([0.5 * 2.0**-40, 1.0 - 2.0**-24], dtype=np.float32)

    assert np.isfinite(-np.log(-np.log1p(-w))).all()


def test_the_argmax_draws_from_p() -> None:
    """argmax(log p + G) over 20 runs of 2000 positions is distributed as p: chi-square p > 0.001 each."""
    p = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    logs = torch.from_numpy(np.log(p).astype(np.float32))
    for seed in range(20):
        keys = noise_keys([seed] * 2000, list(range(2000)), CPU)
        drawn = (logs + gumbel(keys, torch.arange(5))).argmax(-1)
        assert stats.chisquare(torch.bincount(drawn, minlength=5).numpy(), p * 2000).pvalue > 0.001
