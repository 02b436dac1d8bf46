"""Gumbel noise as a pure function of (seed, position, token): the shared randomness of the match rule.

Counter-based: nothing is stored, any entry is computed alone, in any order, on any device. Integers are exact 64-bit
arithmetic (unsigned in numpy, two's complement in torch) and agree bit for bit; the final logarithms are float32.

    key(seed, t)    = mix(mix(seed + C) + t * C)                                C = 0x9E3779B97F4A7C15
    bits(seed, t, v) = mix(key + v * C) >> 24                                    40 bits
    w = (bits + 0.5) / 2^40   E = -log1p(-w) ~ Exp(1)   G = -log(E) ~ Gumbel(0, 1)

`mix` is the finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). The argmax is
decided where E is small, and there float32 keeps its relative precision: that is why w is near 0 for the largest G.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

_C = 0x9E3779B97F4A7C15
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB
_MASK = 2**64 - 1
LARGEST_W = 1.0 - 2.0**-24
_CACHED_ROWS = 8
"""Rows whose noise is made at a time on a CPU, so that it stays in the cache meanwhile."""


def _signed(value: int) -> int:
    """The two's complement reading of 64 bits."""
    return value - 2**64 if value >= 2**63 else value


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * _M1) & _MASK
    x = ((x ^ (x >> 27)) * _M2) & _MASK
    return x ^ (x >> 31)


@lru_cache(1024)
def _mixed(seed: int) -> int:
    """A text's own part of its keys, asked for at each of its tokens."""
    return _mix((seed + _C) & _MASK)


def noise_key(seed: int, position: int) -> int:
    """The 64-bit key of one position of one seeded text (`seed` and the result unsigned)."""
    return _mix((_mixed(seed) + position * _C) & _MASK)


def noise_keys(seeds: Sequence[int], positions: Sequence[int], device: torch.device) -> torch.Tensor:
    """Keys of many (seed, position) pairs: int64 (rows,), the two's complement of `noise_key`."""
    keys = np.array(list(map(noise_key, seeds, positions)), dtype=np.uint64)
    return torch.from_numpy(keys.view(np.int64)).to(device)


def gumbel_reference(seed: int, position: int, tokens: np.ndarray) -> np.ndarray:
    """G(seed, position, v) for each v of `tokens`, in numpy, float32: the definition that `gumbel` is tested against."""
    with np.errstate(over="ignore"):
        x = np.uint64(noise_key(seed, position)) + tokens.astype(np.uint64) * np.uint64(_C)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(_M1)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(_M2)
        x = x ^ (x >> np.uint64(31))
    w = ((x >> np.uint64(24)).astype(np.float64) + 0.5) * 2.0**-40
    w32 = np.minimum(w.astype(np.float32), np.float32(LARGEST_W))
    return -np.log(-np.log1p(-w32))


def hash_bits(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The 40 hash bits of each (row, token), int64. `keys` (rows, 1), `tokens` broadcastable to (rows, n)."""
    if keys.device.type == "cpu":
        return torch.from_numpy(_hash_numpy(keys.numpy(), tokens.numpy()))
    return _hash_torch(keys, tokens)


def _hash_torch(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Two's complement: products wrap as unsigned ones do, and masks make the shifts logical."""
    x = tokens * _signed(_C) + keys
    x = (x ^ ((x >> 30) & (2**34 - 1))).mul_(_signed(_M1))
    x = (x ^ ((x >> 27) & (2**37 - 1))).mul_(_signed(_M2))
    x = x ^ ((x >> 31) & (2**33 - 1))
    return (x >> 24) & (2**40 - 1)


def _hash_numpy(keys: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The same on the CPU, three times as fast: real unsigned integers; nothing allocated but the result and one buffer."""
    x = tokens.view(np.uint64) * np.uint64(_C) + keys.view(np.uint64)
    buffer = np.empty_like(x)
    for shift, factor in ((30, _M1), (27, _M2), (31, 1)):
        np.right_shift(x, np.uint64(shift), out=buffer)
        x ^= buffer
        x *= np.uint64(factor)
    x >>= np.uint64(24)
    return x.view(np.int64)


def gumbel(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Gumbel noise of each (row, token), float32 (rows, n).

    `keys`: int64 (rows,) from `noise_keys`. `tokens`: int64 (n,) for the same ids in every row, or (rows, n).
    """
    if keys.device.type == "cpu":
        return torch.from_numpy(gumbel_at(keys.numpy()[:, None], tokens.numpy()))
    w = hash_bits(keys[:, None], tokens).to(torch.float64).add_(0.5).mul_(2.0**-40).to(torch.float32)
    return w.clamp_(max=LARGEST_W).neg_().log1p_().neg_().log_().neg_()


def gumbel_at(keys: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The same on the CPU, of any (key, token), int64 both and broadcast against each other: float32."""
    w = _hash_numpy(keys, tokens).astype(np.float64)
    w += 0.5
    w *= 2.0**-40
    x = np.minimum(w.astype(np.float32), np.float32(LARGEST_W))
    for step in (np.negative, np.log1p, np.negative, np.log, np.negative):
        step(x, out=x)
    return x


def add_gumbel(scores: torch.Tensor, keys: torch.Tensor) -> None:
    """Add each (row, token)'s noise to `scores`, float32 (rows, vocabulary)."""
    tokens = torch.arange(scores.shape[-1], device=scores.device)
    block = _CACHED_ROWS if scores.device.type == "cpu" else len(scores)
    for at in range(0, len(scores), block or 1):
        scores[at : at + block] += gumbel(keys[at : at + block], tokens)
