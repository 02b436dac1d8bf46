"""What a layer does between its products, compiled for the processor: attention that walks block tables, norms, the gate.

For a small model on a CPU, one thread, 384 wide, microseconds a layer (torch's operations / these):

    norm, 1 row                          4.7 / 0.7
    gate (silu times up), 1 row           18 / 0.6
    rotate, write keys, attend, 1 row     90 / 12        a context of 150 tokens
    the same, 16 sequences               460 / 170

The first are one pass over memory instead of four. Attention gathers no pages and pads nothing: each query reads the keys that
it sees where they are, so that what it finds does not depend on who else is in the step. That is the way to decode and to
verify drafts; a prompt's many queries are better off as matrix products, and go to torch (`attention.attend_walked`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from specfleet.engine.compiled import ARITHMETIC, fast
from specfleet.engine.products_numba import multiply

PAGE = 16
"""Tokens of a page: a constant to the compiler (`core.step.PAGE_SIZE`)."""

_f = np.float32
_LOWEST, _HIGHEST = _f(-87.0), _f(88.0)
"""Beyond them e^x is no normal float32."""


@njit(fastmath=ARITHMETIC, inline="always")
def _exp(x: float) -> float:
    """e^x to 2 units in the last place, without a branch: 2^k e^r, e^r by the polynomial of Cephes' expf."""
    k = np.floor(x * _f(1.44269504) + _f(0.5))
    r = x - k * _f(0.693359375) + k * _f(2.12194440e-4)
    p = _f(1.9875691500e-4)
    p = p * r + _f(1.3981999507e-3)
    p = p * r + _f(8.3334519073e-3)
    p = p * r + _f(4.1665795894e-2)
    p = p * r + _f(1.6666665459e-1)
    p = p * r + _f(5.0000001201e-1)
    p = p * r * r + r + _f(1.0)
    return p * np.int32((np.int32(k) + np.int32(127)) * np.int32(8388608)).view(np.float32)  # type: ignore[no-any-return]


@fast
def embed(ids: Any, table: Any, out: Any) -> None:
    """Rows of `table` into `out`; zeros into the rows that are left."""
    tokens = len(ids)
    for t in range(tokens):
        row = ids[t]
        for i in range(table.shape[1]):
            out[t, i] = table[row, i]
    out[tokens:] = _f(0.0)


@fast
def normalize(x: Any, weight: Any, epsilon: float, out: Any) -> None:
    """RMS norm of each row: x / sqrt(mean(x^2) + epsilon) * weight."""
    width = x.shape[1]
    for t in range(x.shape[0]):
        squares = _f(0.0)
        for i in range(width):
            squares += x[t, i] * x[t, i]
        factor = _f(1.0) / np.sqrt(squares / _f(width) + _f(epsilon))
        for i in range(width):
            out[t, i] = x[t, i] * factor * weight[i]


@fast
def gate(both: Any, out: Any) -> None:
    """silu(first half) * second half of each row."""
    size = out.shape[1]
    for t in range(out.shape[0]):
        for i in range(size):
            g = both[t, i]
            e = _exp(min(max(-g, _LOWEST), _HIGHEST))
            out[t, i] = g / (_f(1.0) + e) * both[t, size + i]


@fast
def rotate_and_store(
    heads: Any,
    positions: Any,
    slots: Any,
    cosines: Any,
    sines: Any,
    query_weight: Any,
    key_weight: Any,
    epsilon: float,
    query_heads: int,
    keys: Any,
    values: Any,
) -> None:
    """`heads` (rows, (query heads + 2 kv_heads) * dim) of as many tokens as there are `slots`: queries turned by their
    positions where they are, keys turned and values as they are into keys and values (slots, kv_heads, dim).

    cosines and sines (positions, dim), the first half of the sines negated. Where `query_weight` and `key_weight` are not
    empty, each head has its RMS norm before it is turned.
    """
    kv_heads, dim = keys.shape[1], keys.shape[2]
    half = dim // 2
    normed = len(query_weight) > 0
    for t in range(len(slots)):
        position, slot = positions[t], slots[t]
        for h in range(query_heads + kv_heads):
            at = h * dim
            if normed:
                squares = _f(0.0)
                for d in range(dim):
                    squares += heads[t, at + d] * heads[t, at + d]
                factor = _f(1.0) / np.sqrt(squares / _f(dim) + _f(epsilon))
                for d in range(dim):
                    weight = query_weight[d] if h < query_heads else key_weight[d]
                    heads[t, at + d] = heads[t, at + d] * factor * weight
            for d in range(half):
                low, high = heads[t, at + d], heads[t, at + half + d]
                heads[t, at + d] = low * cosines[position, d] + high * sines[position, d]
                heads[t, at + half + d] = high * cosines[position, half + d] + low * sines[position, half + d]
        for h in range(kv_heads):
            at = (query_heads + h) * dim
            for d in range(dim):
                keys[slot, h, d] = heads[t, at + d]
                values[slot, h, d] = heads[t, at + kv_heads * dim + d]


@fast
def attend(
    queries: Any, query_heads: int, keys: Any, values: Any, walk: Any, pages: Any, window: int, scale: float, out: Any
) -> None:
    """Softmax attention of the queries that `walk` names: of row walk[0, n] of `queries` (rows, at least query heads * dim),
    whose sequence's block table begins at pages[walk[1, n]]. It stands at position walk[2, n] and sees the places up to
    walk[3, n], of them those less than `window` away (0: all), and the place walk[4, n], unless that is negative.

    keys and values (slots, kv_heads, dim); `out` (rows, query heads * dim).
    """
    kv_heads, dim = keys.shape[1], keys.shape[2]
    share = query_heads // kv_heads
    most = 0
    for n in range(walk.shape[1]):
        most = max(most, walk[3, n] + 2)
    scores = np.empty((share, most), np.float32)
    sums = np.empty((share, dim), np.float32)
    for n in range(walk.shape[1]):
        t, begin, end, own = walk[0, n], walk[1, n], walk[3, n] + 1, walk[4, n]
        first = max(0, walk[2, n] + 1 - window) if window > 0 else 0
        for h in range(kv_heads):
            for s in range(share):
                at = (h * share + s) * dim
                place = first
                while place < end:
                    slot, stop = pages[begin + place // PAGE] * PAGE, min(end, (place // PAGE + 1) * PAGE)
                    for j in range(place, stop):
                        score = _f(0.0)
                        for d in range(dim):
                            score += queries[t, at + d] * keys[slot + j % PAGE, h, d]
                        scores[s, j - first] = score * _f(scale)
                    place = stop
                seen = end - first
                if own >= 0:
                    slot = pages[begin + own // PAGE] * PAGE + own % PAGE
                    score = _f(0.0)
                    for d in range(dim):
                        score += queries[t, at + d] * keys[slot, h, d]
                    scores[s, seen] = score * _f(scale)
                    seen += 1
                top = scores[s, 0]
                for j in range(seen):
                    top = max(top, scores[s, j])
                total = _f(0.0)
                for j in range(seen):
                    e = _exp(max(scores[s, j] - top, _LOWEST))
                    scores[s, j] = e
                    total += e
                for j in range(seen):
                    scores[s, j] /= total
                for d in range(dim):
                    sums[s, d] = _f(0.0)
            place = first
            while place < end:
                slot, stop = pages[begin + place // PAGE] * PAGE, min(end, (place // PAGE + 1) * PAGE)
                for j in range(place, stop):
                    for s in range(share):
                        weight = scores[s, j - first]
                        for d in range(dim):
                            sums[s, d] += weight * values[slot + j % PAGE, h, d]
                place = stop
            if own >= 0:
                slot = pages[begin + own // PAGE] * PAGE + own % PAGE
                for s in range(share):
                    weight = scores[s, end - first]
                    for d in range(dim):
                        sums[s, d] += weight * values[slot, h, d]
            for s in range(share):
                at = (h * share + s) * dim
                for d in range(dim):
                    out[t, at + d] = sums[s, d]


@fast
def decode(
    x: Any,
    weights: Any,
    biases: Any,
    norms: Any,
    epsilons: Any,
    cosines: Any,
    sines: Any,
    head_norms: Any,
    head_epsilons: Any,
    query_heads: int,
    positions: Any,
    slots: Any,
    cache: Any,
    walk: Any,
    pages: Any,
    windows: Any,
    scales: Any,
    memory: Any,
) -> None:
    """All layers, in place: x (tokens, width), which of each token is what goes into the first and comes out of the last.

    `weights`, `biases`: `products_numba.pack`ed, one layer's behind the other's, and (layers, outputs or 0), of each of the
    products: queries, keys and values; attention's output; gate and up; down. `norms`: two arrays (layers, width), `epsilons`
    (2, layers). `head_norms`: of queries and keys (layers, dim or 0), `head_epsilons` (layers,). `cache`: keys and values, a
    tuple of layers each. `memory`: six arrays (tokens, width of what they hold): a second x, what is normed, heads, what is
    seen, both halves of the gate, what is gated. The rest is for `rotate_and_store` and `attend`.
    """
    y, normed, heads, seen, both, gated = memory
    none = np.empty((0, 0), np.float32)
    for layer in range(len(weights[0])):
        normalize(x, norms[0][layer], epsilons[0, layer], normed)
        multiply(normed, weights[0][layer], biases[0][layer], none, heads)
        keys, values = cache[0][layer], cache[1][layer]
        query_norm, key_norm = head_norms[0][layer], head_norms[1][layer]
        epsilon = head_epsilons[layer]
        rotate_and_store(
            heads, positions, slots, cosines, sines, query_norm, key_norm, epsilon, query_heads, keys, values
        )
        attend(heads, query_heads, keys, values, walk, pages, windows[layer], scales[layer], seen)
        multiply(seen, weights[1][layer], biases[1][layer], x, y)
        normalize(y, norms[1][layer], epsilons[1, layer], normed)
        multiply(normed, weights[2][layer], biases[2][layer], none, both)
        gate(both, gated)
        multiply(gated, weights[3][layer], biases[3][layer], y, x)
