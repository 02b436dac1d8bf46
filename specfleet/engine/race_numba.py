"""`race` for a whole batch, compiled: one pass over each row for what may be kept, and logarithms for hardly any of that.

A token's noise is -log(E), E = -log1p(-w), from a hash w in (0, 1). It beats a leader's value b if E < e^(score - b), and
E is at least w: where w is above that already, it has lost, and no logarithm is taken. Hashes are a few instructions.

Arithmetic is float32's own, in the order in which it stands: what a row says does not depend on the rows beside it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from specfleet.engine.compiled import exact
from specfleet.engine.noise import LARGEST_W

_C = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_24, _27, _30, _31 = (np.uint64(shift) for shift in (24, 27, 30, 31))
_NOBODY = -1
_SLACK = 1.0001
"""Weights and scores are rounded apart: what is this close is looked at."""
_SMALLEST = np.float32(1e-30)
"""Weights below have lost their precision."""
_LARGEST = np.float32(LARGEST_W)
_ONE = np.float32(1.0)


@exact
def _uniform(key: Any, token: int) -> float:
    """w of `noise`."""
    x = key + np.uint64(token) * _C
    x = (x ^ (x >> _30)) * _M1
    x = (x ^ (x >> _27)) * _M2
    x = x ^ (x >> _31)
    return (np.float64(x >> _24) + 0.5) * 2.0**-40  # type: ignore[no-any-return]


@exact
def _winner(scores: Any, weights: Any, places: Any, key: Any, certain: float, excluded: int) -> int:
    """Of the tokens at `places`, the kept one of largest score plus noise; _NOBODY where there is none."""
    above = -np.inf
    while True:
        best, token, scale = np.float32(-np.inf), _NOBODY, np.inf
        for place in places:
            score, weight = scores[place], weights[place]
            if score <= above or place == excluded:
                continue
            w = _uniform(key, place)
            if weight > _SMALLEST and w > weight * scale:
                continue
            value = score - np.float32(math.log(-np.float32(math.log1p(-min(np.float32(w), _LARGEST)))))
            if value > best:
                best, token = value, place
                scale = math.exp(-np.float64(best)) * _SLACK
        if token == _NOBODY:
            return token
        before = 0.0
        for place in places:
            if scores[place] > scores[token]:
                before += weights[place]
        if before < certain:
            return token
        above = scores[token]  # cut off, and so is whoever is no likelier


@exact
def race(
    scores: Any,
    weights: Any,
    keys: Any,
    least_score: Any,
    least_weights: Any,
    certain: Any,
    first: Any,
    second: Any,
    runners_up: bool,
) -> None:
    """The winner of each row into `first`, and where `runners_up` asks whoever would be it without that one into `second`.

    `scores`, `weights` (their exponentials): float32 (rows, vocabulary). `keys`: uint64 (rows,). Tokens below `least_score` or
    their row's of `least_weights` do not take part. `certain`: float64 (rows,): a token is kept if those likelier weigh less.
    """
    rows, vocabulary = scores.shape
    places = np.empty(vocabulary, np.int64)
    for row in range(rows):
        own, heavy, count = scores[row], weights[row], 0
        for token in range(vocabulary):
            places[count] = token
            count += int(heavy[token] >= least_weights[row]) & int(own[token] >= least_score)
        found = _winner(own, heavy, places[:count], keys[row], certain[row], _NOBODY)
        first[row] = found
        if runners_up and found != _NOBODY:
            second[row] = _winner(own, heavy, places[:count], keys[row], certain[row], found)
