"""`race` for a whole batch, compiled: one pass over each row for what may be kept, and logarithms for hardly any of that.

A token's noise is -log(E), E = -log1p(-w), from a hash w in (0, 1). It beats a leader's value b if E < e^(score - b), and
E is at least w: where w is above that already, it has lost, and no logarithm is taken. Hashes are a few instructions.

Arithmetic is float32's own, in the order in which it stands: what a row says does not depend on the rows beside it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from specfleet.engine.attend_numba import exp, largest
from specfleet.engine.compiled import exact, fast
from specfleet.engine.noise import LARGEST_W
from specfleet.engine.sampling import SMALLEST_TEMPERATURE

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
_LOWEST = np.float32(-87.0)
"""Below it e^x is no normal float32."""
_TINY = float(np.finfo(np.float64).tiny)
_WORD = 8
"""Bytes."""
_PARTS = 16.0, 64.0, 256.0, 1024.0
"""Shares of what may be cut off that are tried as a bound: the higher it is, the fewer tokens race."""
_CAREFUL = 0.9999
"""Sums in float32 are not exact."""
_SUMMED = 8192
"""Weights that are summed up in float32 at a time."""


@exact
def _mix(x: Any) -> Any:
    x = (x ^ (x >> _30)) * _M1
    x = (x ^ (x >> _27)) * _M2
    return x ^ (x >> _31)


@exact
def _key(seed: Any, position: Any) -> Any:
    """`noise.noise_key`."""
    return _mix(_mix(seed + _C) + position * _C)


@exact
def _uniform(key: Any, token: int) -> float:
    """w of `noise`."""
    return (np.float64(_mix(key + np.uint64(token) * _C) >> _24) + 0.5) * 2.0**-40  # type: ignore[no-any-return]


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
def _score(logits: Any, top: float, temperature: float, scores: Any) -> None:
    """How far each of a row's logits is below its largest, over the temperature."""
    for token in range(len(logits)):
        scores[token] = (logits[token] - top) / temperature


@fast
def _weigh(scores: Any, weights: Any) -> float:
    """Exponentials of `scores` into `weights`; their sum."""
    total = np.float32(0.0)
    for token in range(len(scores)):
        weight = exp(max(scores[token], _LOWEST))
        weights[token] = weight
        total += weight
    return np.float64(total)


@fast
def _below(weights: Any, bound: float) -> float:
    """The sum of those below it."""
    total = np.float32(0.0)
    for place in range(len(weights)):
        total += weights[place] if weights[place] < bound else np.float32(0.0)
    return np.float64(total)


@exact
def _cut_off(weights: Any, spare: float) -> float:
    """A bound below which all together weigh no more than `spare`. So do those of an even part of it, however many."""
    for part in _PARTS:
        if part < len(weights) and _below(weights, np.float32(spare / part)) < spare * _CAREFUL:
            return spare / part  # type: ignore[no-any-return]
    return spare / len(weights)  # type: ignore[no-any-return]


@exact
def _takers(scores: Any, weights: Any, least_score: float, least_weight: float, takes: Any, places: Any) -> int:
    """The tokens below neither, into `places`; how many. `takes`: room for a byte each, zeros up to a whole number of words;
    `places` has room for a word's more. Most words are zero, and within others nothing is left to be guessed by a branch."""
    for token in range(len(scores)):
        takes[token] = np.uint8(weights[token] >= least_weight) & np.uint8(scores[token] >= least_score)
    words, count = takes.view(np.uint64), 0
    for word in range(len(words)):
        if words[word]:
            for token in range(_WORD * word, _WORD * (word + 1)):
                places[count] = token
                count += np.int64(takes[token])
    return count


@exact
def _unknown(numbers: Any) -> int:
    """How many are NaN."""
    count = np.int32(0)
    for place in range(len(numbers)):
        count += np.int32(numbers[place] != numbers[place])
    return count


@exact
def race(
    logits: Any,
    rows: Any,
    truncations: Any,
    seeds: Any,
    positions: Any,
    first: Any,
    second: Any,
    tops: Any,
    runners_up: bool,
) -> None:
    """The winner of each of `rows` into `first`, and where `runners_up` asks whoever would be it without that one into
    `second`; its largest logit into `tops`, NaN if there is any.

    `logits`: float32 (any, vocabulary). `truncations`: float64 (rows, 4), the fields of a `Truncation`, of which top_k was
    seen to. `seeds`, `positions`: uint64 (rows,). Scores are what a logit is below its row's largest, over the float32
    temperature. Those below log(min_p) do not take part, nor the least likely of at most 1 - top_p together.
    """
    vocabulary = logits.shape[1]
    takes = np.zeros(-(-vocabulary // _WORD) * _WORD, np.uint8)
    places = np.empty(vocabulary + _WORD, np.int64)
    scores, weights = np.empty(vocabulary, np.float32), np.empty(vocabulary, np.float32)
    for row in range(len(rows)):
        temperature = np.float32(max(truncations[row, 0], SMALLEST_TEMPERATURE))
        top_p, min_p = truncations[row, 2], truncations[row, 3]
        least_score = np.float32(math.log(min_p)) if min_p > 0.0 else np.float32(-np.inf)
        key = _key(seeds[row], positions[row])
        own, top = logits[rows[row]], largest(logits[rows[row]])
        tops[row] = np.float32(np.nan) if _unknown(own) else top
        _score(own, top, temperature, scores)
        total = 0.0
        for begin in range(0, vocabulary, _SUMMED):
            total += _weigh(scores[begin : begin + _SUMMED], weights[begin : begin + _SUMMED])
        certain, least_weight = np.inf, np.float32(0.0)
        if top_p < 1.0:
            spare = (1.0 - top_p) * total
            # What all weigh, less what may be cut off.
            certain = max(total - spare, _TINY)
            least_weight = np.float32(min(_cut_off(weights, spare), 1.0))
        count = _takers(scores, weights, least_score, least_weight, takes, places)
        found = _winner(scores, weights, places[:count], key, certain, _NOBODY)
        first[row], second[row] = found, _NOBODY
        if runners_up and found != _NOBODY:
            second[row] = _winner(scores, weights, places[:count], key, certain, found)
