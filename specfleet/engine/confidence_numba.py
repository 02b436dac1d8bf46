"""`confidence.confidences` of one row, compiled: a pass for the sums and one for the second largest. Numpy takes ten functions
for it, each of which takes several times as long behind a forward pass as in a loop of its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from specfleet.engine.attend_numba import exp, largest
from specfleet.engine.compiled import exact, fast
from specfleet.engine.confidence import LIKELIEST, NOT_ASKED

_LOWEST = np.float32(-87.0)
"""Below it e^x is no normal float32."""
_SUMMED = 8192
"""Weights that are summed up in float32 at a time."""


@fast
def _sums(logits: Any, best: float) -> tuple[float, float, float]:
    """Of e^x, x e^x and e^2x, x being what each of them is below the largest."""
    z = weighted = squares = np.float32(0.0)
    for token in range(len(logits)):
        x = max(logits[token] - best, _LOWEST)
        e = exp(x) if x > _LOWEST else np.float32(0.0)
        z += e
        weighted += e * x
        squares += e * e
    return np.float64(z), np.float64(weighted), np.float64(squares)


@exact
def _place(logits: Any, value: float, but: int) -> int:
    """Where it stands first, not counting one place."""
    for token in range(len(logits)):
        if logits[token] == value and token != but:
            return token
    return 0


@exact
def _largest_but(logits: Any, place: int) -> float:
    found = np.float32(-np.inf)
    if place > 0:
        found = largest(logits[:place])
    if place + 1 < len(logits):
        found = max(found, largest(logits[place + 1 :]))
    return found


@exact
def confidence(
    rows: Any, row: int, best: float, chosen: int, runner_up: int
) -> tuple[float, float, float, float, int, float]:
    """The fields of a `Confidence`. `rows`: float32 (any, vocabulary), `best` the largest of that row; `runner_up`: an id,
    LIKELIEST or NOT_ASKED."""
    logits, top = rows[row], np.float32(best)
    z, weighted, squares = 0.0, 0.0, 0.0
    for begin in range(0, len(logits), _SUMMED):
        a, b, c = _sums(logits[begin : begin + _SUMMED], top)
        z, weighted, squares = z + a, weighted + b, squares + c
    likeliest = chosen if logits[chosen] == top else _place(logits, top, -1)
    rest = _largest_but(logits, likeliest)
    second = math.exp(np.float64(rest - top))
    own = math.exp(np.float64(logits[chosen] - top))
    entropy = math.log(z) - weighted / z
    spread = 2.0 * math.log(z) - math.log(squares)
    share = 0.0
    if runner_up == LIKELIEST:
        runner_up = _place(logits, rest, chosen) if likeliest == chosen else likeliest
    if runner_up != NOT_ASKED and z > own:
        share = min(math.exp(np.float64(logits[runner_up] - top)) / (z - own), 1.0)
    return own / z, entropy, (1.0 - second) / z, spread, runner_up, share
