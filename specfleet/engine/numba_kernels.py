"""What a layer does between its products, compiled for the processor: norms, positions, the gate; and whole layers.

For a small model on a CPU, one thread, 384 wide, microseconds a layer (torch's operations / these):

    norm, 1 row                          4.7 / 0.7
    gate (silu times up), 1 row           18 / 0.6
    rotate, write keys, attend, 1 row     90 / 12        a context of 150 tokens
    the same, 16 sequences               460 / 170

The first are one pass over memory instead of four. `decode` is all of it, products and attention included, for all layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from specfleet.engine.attend_numba import attend, exp
from specfleet.engine.compiled import fast
from specfleet.engine.products_numba import multiply

_f = np.float32
_LOWEST, _HIGHEST = _f(-87.0), _f(88.0)
"""Beyond them e^x is no normal float32."""


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
            e = exp(min(max(-g, _LOWEST), _HIGHEST))
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
