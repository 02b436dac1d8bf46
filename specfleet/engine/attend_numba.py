"""Attention that walks block tables, in tiles that stay in registers (`products_numba` says why).

It gathers no pages and pads nothing: each query reads the keys that it sees where they are. That is the way to decode and to
verify drafts; a prompt's many queries are better off as matrix products, and go to torch (`attention.attend_walked`).

The query heads that share a key head are taken up to three at a time, with four of a page's keys, and then with four vectors
of its values. All that a query's sums depend on is the query and its places: not who else is in the step, nor which heads
were taken together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from specfleet.engine.compiled import ARITHMETIC, fast
from specfleet.engine.products_numba import WIDE, address, spread

PAGE = 16
"""Tokens of a page: a constant to the compiler (`core.step.PAGE_SIZE`)."""

_LANES = 16 if WIDE else 8
_KEYS = 4
"""Of a tile."""
_VECTORS = 4
"""Of a value in a tile; what is left over goes one by one."""

_f = np.float32
_LOWEST = _f(-87.0)
"""Below it e^x is no normal float32."""

_index, _float = ir.IntType(64), ir.FloatType()
_floats = ir.VectorType(_float, _LANES)
_NOTHING, _ZEROS = ir.Constant(_floats, ir.Undefined), ir.Constant(_floats, [0.0] * _LANES)
_FREE = ("contract",)


@njit(fastmath=ARITHMETIC, inline="always")
def exp(x: float) -> float:
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


def _at(builder: ir.IRBuilder, place: Any, stride: Any, number: int) -> Any:
    """A pointer to floats, `number` strides from the address `place`."""
    first = builder.inttoptr(place, _float.as_pointer())
    return builder.gep(first, [builder.mul(stride, ir.Constant(_index, number))])


def _load(builder: ir.IRBuilder, pointer: Any, place: Any) -> Any:
    return builder.load(builder.bitcast(builder.gep(pointer, [place]), _floats.as_pointer()), align=4)


def _shuffled(builder: ir.IRBuilder, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


def _sums(builder: ir.IRBuilder, vectors: list[Any]) -> Any:
    """The sums of four vectors as one of four."""
    lanes = _LANES
    while lanes > 4:
        lanes //= 2
        halves = [list(range(lanes)), list(range(lanes, 2 * lanes))]
        vectors = [builder.fadd(*(_shuffled(builder, one, one, half) for half in halves)) for one in vectors]
    a, b, c, d = vectors
    first, second = [0, 4, 1, 5], [2, 6, 3, 7]
    ab, cd = (
        builder.fadd(_shuffled(builder, one, two, first), _shuffled(builder, one, two, second))
        for one, two in ((a, b), (c, d))
    )
    return builder.fadd(_shuffled(builder, ab, cd, [0, 1, 4, 5]), _shuffled(builder, ab, cd, [2, 3, 6, 7]))


def _loop(
    builder: ir.IRBuilder, count: Any, starts: list[Any], body: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """`body(number, sums)` for each number below `count` (at least one): what it makes of the sums that began as `starts`."""
    before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    number = builder.phi(_index)
    number.add_incoming(ir.Constant(_index, 0), before)
    sums = [builder.phi(_floats) for _ in starts]
    found = body(number, sums)  # type: ignore[arg-type]
    following = builder.add(number, ir.Constant(_index, 1))
    number.add_incoming(following, loop)
    for total, start, new in zip(sums, starts, found, strict=True):
        total.add_incoming(start, before)
        total.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    builder.position_at_end(after)
    return found


def _scores(rows: int) -> Callable[..., None]:
    """Products of so many queries with four keys. Arguments: address of the first query and floats from one to the next; of
    the first key, likewise; vectors of a key; address of the first query's scores, likewise."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        query, query_stride, key, key_stride, vectors, out, out_stride = arguments
        queries = [_at(builder, query, query_stride, row) for row in range(rows)]
        keys = [_at(builder, key, key_stride, number) for number in range(_KEYS)]

        def body(number: Any, sums: list[Any]) -> list[Any]:
            place = builder.mul(number, ir.Constant(_index, _LANES))
            of_query = [_load(builder, one, place) for one in queries]
            found = []
            for each in range(_KEYS):
                own = _load(builder, keys[each], place)
                for row in range(rows):
                    product = builder.fmul(own, of_query[row], flags=_FREE)
                    found.append(builder.fadd(product, sums[each * rows + row], flags=_FREE))
            return found

        found = _loop(builder, vectors, [_ZEROS] * (_KEYS * rows), body)
        for row in range(rows):
            target = _at(builder, out, out_stride, row)
            four = _sums(builder, found[row::rows])
            builder.store(four, builder.bitcast(target, four.type.as_pointer()), align=4)
        return context.get_dummy_value()

    @intrinsic
    def scores(typing: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any) -> tuple[Any, Any]:
        return types.void(*[types.intp] * 7), build

    return scores  # type: ignore[no-any-return]


def _blend(rows: int, vectors: int) -> Callable[..., None]:
    """Adds values, each times a weight, to so many sums of so many vectors. Arguments: address of the first sum's weights and
    floats from one sum's to the next; of the first value, likewise from one value to the next; values; address of the first
    sum, likewise."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        weight, weight_stride, value, value_stride, count, out, out_stride = arguments
        weights = [_at(builder, weight, weight_stride, row) for row in range(rows)]
        first = builder.inttoptr(value, _float.as_pointer())
        sums = [_at(builder, out, out_stride, row) for row in range(rows)]
        places = [ir.Constant(_index, number * _LANES) for number in range(vectors)]

        def body(number: Any, sums: list[Any]) -> list[Any]:
            begin = builder.gep(first, [builder.mul(number, value_stride)])
            own = [spread(builder, builder.load(builder.gep(one, [number]), align=4), _LANES) for one in weights]
            found = []
            for each in range(vectors):
                part = _load(builder, begin, places[each])
                for row in range(rows):
                    product = builder.fmul(part, own[row], flags=_FREE)
                    found.append(builder.fadd(product, sums[each * rows + row], flags=_FREE))
            return found

        starts = [_load(builder, one, place) for place in places for one in sums]
        found = _loop(builder, count, starts, body)
        for each, place in enumerate(places):
            for row, one in enumerate(sums):
                target = builder.bitcast(builder.gep(one, [place]), _floats.as_pointer())
                builder.store(found[each * rows + row], target, align=4)
        return context.get_dummy_value()

    @intrinsic
    def blend(typing: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any) -> tuple[Any, Any]:
        return types.void(*[types.intp] * 7), build

    return blend  # type: ignore[no-any-return]


_scores_1, _scores_2, _scores_3 = _scores(1), _scores(2), _scores(3)
_blend_1, _blend_2, _blend_3 = _blend(1, _VECTORS), _blend(2, _VECTORS), _blend(3, _VECTORS)
_rest_1, _rest_2, _rest_3 = _blend(1, 1), _blend(2, 1), _blend(3, 1)


@njit(inline="always")
def _ordered(bits: int) -> int:
    """Of a float32 an integer that compares as it does, and back."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@njit(error_model="numpy")
def largest(numbers: Any) -> float:
    """NaN if there is one whose sign is positive. As integers: the largest float of many is found one by one."""
    bits, found = numbers.view(np.int32), np.int32(-0x80000000)
    for place in range(len(bits)):
        found = max(found, _ordered(bits[place]))
    return _ordered(found).view(np.float32)  # type: ignore[attr-defined, no-any-return]


@fast
def _soften(scores: Any, scale: float) -> None:
    """The softmax of `scores` times `scale`, in place."""
    top, total = largest(scores), _f(0.0)
    for j in range(len(scores)):
        e = exp(max((scores[j] - top) * scale, _LOWEST))
        scores[j] = e
        total += e
    part = _f(1.0) / total
    for j in range(len(scores)):
        scores[j] *= part


@fast
def _score_page(
    rows: int, query: int, dim: int, key: int, stride: int, begin: int, end: int, out: int, width: int
) -> None:
    """Products of `rows` queries, one behind the other, with a page's keys from `begin` on, in fours, up to `end`."""
    for j in range(begin // _KEYS * _KEYS, end, _KEYS):
        own, target = key + j * stride * 4, out + j * 4
        if rows == 3:
            _scores_3(query, dim, own, stride, dim // _LANES, target, width)
        elif rows == 2:
            _scores_2(query, dim, own, stride, dim // _LANES, target, width)
        else:
            _scores_1(query, dim, own, stride, dim // _LANES, target, width)


@fast
def _blend_page(rows: int, weight: int, width: int, value: int, stride: int, count: int, out: int, dim: int) -> None:
    """Adds a page's values to `rows` sums, one behind the other."""
    d = 0
    while d < dim:
        many = d + _VECTORS * _LANES <= dim
        own, target = value + d * 4, out + d * 4
        if rows == 3:
            if many:
                _blend_3(weight, width, own, stride, count, target, dim)
            else:
                _rest_3(weight, width, own, stride, count, target, dim)
        elif rows == 2:
            if many:
                _blend_2(weight, width, own, stride, count, target, dim)
            else:
                _rest_2(weight, width, own, stride, count, target, dim)
        elif many:
            _blend_1(weight, width, own, stride, count, target, dim)
        else:
            _rest_1(weight, width, own, stride, count, target, dim)
        d += _VECTORS * _LANES if many else _LANES


@fast
def _plainly_scored(query: Any, keys: Any, slot: int, begin: int, end: int, share: int, scores: Any) -> None:
    """For heads that are no whole vectors: `query` (query heads * dim), scores (query heads, places from the page's first)."""
    dim = keys.shape[2]
    for head in range(scores.shape[0]):
        for j in range(begin, end):
            score = _f(0.0)
            for d in range(dim):
                score += query[head * dim + d] * keys[slot + j, head // share, d]
            scores[head, j] = score


@fast
def _plainly_blended(weights: Any, values: Any, slot: int, begin: int, end: int, share: int, out: Any) -> None:
    """Likewise: `weights` (query heads, places), `out` (query heads * dim)."""
    dim = values.shape[2]
    for head in range(weights.shape[0]):
        for j in range(begin, end):
            for d in range(dim):
                out[head * dim + d] += weights[head, j] * values[slot + j, head // share, d]


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
    stride, share = kv_heads * dim, query_heads // kv_heads
    tiled = dim % _LANES == 0
    most = 0
    for n in range(walk.shape[1]):
        most = max(most, walk[3, n] + 2)
    width = most + PAGE
    scores = np.empty((query_heads, width), np.float32)
    query, key, value, weights, sums = address(queries), address(keys), address(values), address(scores), address(out)
    for n in range(walk.shape[1]):
        t, block, end, own = walk[0, n], walk[1, n], walk[3, n] + 1, walk[4, n]
        first = max(0, walk[2, n] + 1 - window) if window > 0 else 0
        base = first // PAGE * PAGE  # of the first page: scores[:, j - base] is of place j
        before, seen = first - base, max(end, first) - base
        here, target = query + t * queries.shape[1] * 4, sums + t * out.shape[1] * 4
        for place in range(base, end, PAGE):
            slot, begin, stop = pages[block + place // PAGE] * PAGE, max(first - place, 0), min(end - place, PAGE)
            if begin >= stop:
                continue  # a leaf that a window shows nothing but itself
            if not tiled:
                _plainly_scored(queries[t], keys, slot, begin, stop, share, scores[:, place - base :])
                continue
            for h in range(kv_heads):
                there, row = key + (slot * stride + h * dim) * 4, 0
                while row < share:
                    rows = 2 if share - row == 4 else min(share - row, 3)
                    head = h * share + row
                    at = weights + (head * width + place - base) * 4
                    _score_page(rows, here + head * dim * 4, dim, there, stride, begin, stop, at, width)
                    row += rows
        if own >= 0:
            slot = pages[block + own // PAGE] * PAGE + own % PAGE
            _plainly_scored(queries[t], keys, slot, 0, 1, share, scores[:, seen:])
            seen += 1
        for head in range(query_heads):
            _soften(scores[head, before:seen], _f(scale))
        out[t] = _f(0.0)
        for place in range(base, end, PAGE):
            slot, begin, stop = pages[block + place // PAGE] * PAGE, max(first - place, 0), min(end - place, PAGE)
            if begin >= stop:
                continue
            if not tiled:
                _plainly_blended(scores[:, place - base :], values, slot, begin, stop, share, out[t])
                continue
            for h in range(kv_heads):
                there, row = value + ((slot + begin) * stride + h * dim) * 4, 0
                while row < share:
                    rows = 2 if share - row == 4 else min(share - row, 3)
                    head = h * share + row
                    at = weights + (head * width + place - base + begin) * 4
                    _blend_page(rows, at, width, there, stride, stop - begin, target + head * dim * 4, dim)
                    row += rows
        if own >= 0:
            slot = pages[block + own // PAGE] * PAGE + own % PAGE
            _plainly_blended(scores[:, seen - 1 :], values, slot, 0, 1, share, out[t])
