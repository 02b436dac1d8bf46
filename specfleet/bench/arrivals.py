"""When requests come."""

from __future__ import annotations

import numpy as np


def poisson(rate: float, count: int, seed: int) -> tuple[float, ...]:
    """`count` moments of a Poisson process of `rate` per second, in seconds from its start, ascending."""
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, count)
    return tuple(np.cumsum(gaps).tolist())
