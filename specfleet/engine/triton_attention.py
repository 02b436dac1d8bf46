"""Attention over the paged KV pool as one Triton kernel: ragged queries, block tables, causal by position within each
sequence's queries, grouped-query heads, sliding windows, soft caps, and the ancestor mask of token trees.

A *tile* is some neighbouring queries of one sequence with all query heads of one key head: they read the same keys, so those
are read once for all of them. One program computes one tile for one key head, or a part of its keys where there are too few
tiles to fill the device (*splits*; a second kernel then adds the parts up).

Runs on CUDA; with TRITON_INTERPRET=1, set before triton is imported, on the CPU as well, for tests.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from triton.errors import TritonError

from specfleet.core.step import PAGE_SIZE
from specfleet.engine.tiles import Tiles

_LEAST_ROWS, _MOST_ROWS = 16, 64
"""Rows (queries times heads) of a tile: what a matrix product takes at least, and what registers hold."""
_KEYS = 64
"""Keys of one iteration; half of it for float32, which takes twice the registers, and for heads of more than 128."""
_MOST_SPLITS = 16
_LOG2_E = 1.4426950408889634


KernelError = TritonError
"""What Triton raises where a kernel does not compile or fit."""


def interprets() -> bool:
    """Whether kernels run in Triton's interpreter, and so on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def tile_queries(queries: int, share: int) -> int:
    """Queries of a tile where sequences have up to `queries` of them and `share` query heads read one key head."""
    return max(1, min(_rows(queries, share) // share, queries))


def _rows(queries: int, share: int) -> int:
    wanted = max(_LEAST_ROWS, min(queries * share, _MOST_ROWS), share)
    return triton.next_power_of_2(wanted)


def splits_for(programs: int, most_keys: int, device: torch.device) -> int:
    """Into how many parts to split each tile's keys, so that `programs` tiles and key heads fill the device. A part has at
    least four iterations' worth of keys. A power of two: each number is a kernel of its own."""
    if device.type != "cuda":
        return 1
    room = 2 * torch.cuda.get_device_properties(device).multi_processor_count // max(1, programs)
    most = max(1, min(room, _MOST_SPLITS, most_keys // (4 * _KEYS)))
    return 1 << (most.bit_length() - 1)


def paged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tiles: Tiles,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    splits: int = 1,
) -> torch.Tensor:
    """query (tokens, heads, dim); keys and values (pages, 16, kv_heads, dim), this step's written already. Returns (tokens,
    heads, value dim); tokens that no tile holds are left as memory was."""
    tokens, heads, key_dim = query.shape
    kv_heads, value_dim = values.shape[2:]
    share = heads // kv_heads
    out = query.new_empty(tokens, heads, value_dim)
    parts, sums = out, out
    if splits > 1:
        parts = query.new_empty((splits, tokens, heads, value_dim), dtype=torch.float32)
        sums = query.new_empty((splits, tokens, heads, 2), dtype=torch.float32)
    rows, small = _rows(tiles.queries, share), query.itemsize <= 2 and max(key_dim, value_dim) <= 128
    block = _KEYS if small else _KEYS // 2
    _attend[(tiles.count, kv_heads, splits)](
        query, keys, values, out, parts, sums, tiles.table, tiles.positions, tiles.places, tiles.pages,
        scale * _LOG2_E, softcap or 0.0, tokens, query.stride(0), query.stride(1), keys.stride(1), keys.stride(2),
        values.stride(1), values.stride(2),
        HEADS=heads, SHARE=share, ROWS=rows, KEYS=block, PAGE=PAGE_SIZE, KEY_DIM=key_dim, VALUE_DIM=value_dim,
        KEY_COLUMNS=_columns(key_dim), VALUE_COLUMNS=_columns(value_dim), WINDOW=window or 0, CAPPED=softcap is not None,
        SPLITS=splits, UPCAST=interprets() and query.dtype == torch.bfloat16, num_warps=4, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        _add_up[(tokens, heads)](
            parts, sums, out, tokens,
            HEADS=heads, VALUE_DIM=value_dim, VALUE_COLUMNS=_columns(value_dim), SPLITS=splits,
            PARTS=triton.next_power_of_2(splits), num_warps=1,
        )  # fmt: skip
    return out


def _columns(dim: int) -> int:
    return max(16, triton.next_power_of_2(dim))


@triton.jit
def _attend(
    query, keys, values, out, parts, sums, table, positions, places, pages,
    scale, softcap, tokens, query_token, query_head, key_slot, key_head, value_slot, value_head,
    HEADS: tl.constexpr, SHARE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PAGE: tl.constexpr,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, KEY_COLUMNS: tl.constexpr, VALUE_COLUMNS: tl.constexpr,
    WINDOW: tl.constexpr, CAPPED: tl.constexpr, SPLITS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(table + 3 * tile)
    count = tl.load(table + 3 * tile + 1)
    pages += tl.load(table + 3 * tile + 2)
    if count == 0:
        return
    rows = tl.arange(0, ROWS)
    at, real = first + rows // SHARE, rows // SHARE < count
    head = kv_head * SHARE + rows % SHARE
    position = tl.load(positions + at, mask=real, other=0)
    own = tl.load(places + at, mask=real, other=0)
    # A leaf stands for another position than its place in the block table says, and does not see the token that is there.
    last = tl.where(own == position, position, position - 1)
    end = tl.max(own, 0) + 1
    begin = 0 * end
    if WINDOW > 0:
        begin = tl.maximum(tl.min(tl.where(real, position, end), 0) - WINDOW + 1, 0) // KEYS * KEYS
    if SPLITS > 1:
        part = tl.cdiv(tl.cdiv(end - begin, KEYS), SPLITS) * KEYS
        begin += split * part
        end = tl.minimum(end, begin + part)
    key_dims, value_dims = tl.arange(0, KEY_COLUMNS), tl.arange(0, VALUE_COLUMNS)
    key_real, value_real = key_dims < KEY_DIM, value_dims < VALUE_DIM
    q = tl.load(
        query + (at * query_token + head * query_head)[:, None] + key_dims[None, :],
        mask=real[:, None] & key_real[None, :],
        other=0.0,
    )
    if UPCAST:
        q = q.to(tl.float32)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sum_ = tl.zeros((ROWS, VALUE_COLUMNS), tl.float32)
    for start in range(begin, end, KEYS):
        column = start + tl.arange(0, KEYS)
        there = column < end
        slot = tl.load(pages + column // PAGE, mask=there, other=0) * PAGE + column % PAGE
        k = tl.load(
            keys + (slot * key_slot + kv_head * key_head)[None, :] + key_dims[:, None],
            mask=there[None, :] & key_real[:, None],
            other=0.0,
        )
        v = tl.load(
            values + (slot * value_slot + kv_head * value_head)[:, None] + value_dims[None, :],
            mask=there[:, None] & value_real[None, :],
            other=0.0,
        )
        if UPCAST:  # the interpreter would multiply bfloat16 as integers
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q, k, input_precision="ieee") * scale  # base 2, so that exp2 is the softmax's exp
        if CAPPED:
            # tanh(x) = 2 sigmoid(2 x) - 1
            scores = (2.0 * tl.sigmoid(scores * (2.0 * 0.6931471805599453 / softcap)) - 1.0) * (
                softcap * 1.4426950408889634
            )
        seen = column[None, :] <= last[:, None]
        if WINDOW > 0:
            seen = seen & (column[None, :] > position[:, None] - WINDOW)
        seen = (seen | (column[None, :] == own[:, None])) & there[None, :]
        scores = tl.where(seen, scores, float("-inf"))
        new = tl.maximum(largest, tl.max(scores, 1))
        base = tl.where(new == float("-inf"), 0.0, new)  # a row that has seen nothing yet
        shrink = tl.exp2(largest - base)
        weights = tl.exp2(scores - base[:, None])
        total = total * shrink + tl.sum(weights, 1)
        sum_ = sum_ * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        largest = new
    wanted = real[:, None] & value_real[None, :]
    if SPLITS > 1:
        row = (split * tokens + at) * HEADS + head
        tl.store(parts + row[:, None] * VALUE_DIM + value_dims[None, :], sum_, mask=wanted)
        tl.store(sums + row * 2, largest, mask=real)
        tl.store(sums + row * 2 + 1, total, mask=real)
    else:
        result = sum_ / tl.where(real, total, 1.0)[:, None]
        tl.store(out + (at * HEADS + head)[:, None] * VALUE_DIM + value_dims[None, :], result, mask=wanted)


@triton.jit
def _add_up(
    parts, sums, out, tokens,
    HEADS: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_COLUMNS: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One token, one head: the parts' sums, weighed by how their largest scores compare."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    split, dims = tl.arange(0, PARTS), tl.arange(0, VALUE_COLUMNS)
    row = (split * tokens + token) * HEADS + head
    there = split < SPLITS
    largest = tl.load(sums + row * 2, mask=there, other=float("-inf"))
    total = tl.load(sums + row * 2 + 1, mask=there, other=0.0)
    weight = tl.exp2(largest - tl.max(largest, 0))
    weight = tl.where(there & (total > 0.0), weight, 0.0)
    part = tl.load(
        parts + row[:, None] * VALUE_DIM + dims[None, :],
        mask=there[:, None] & (dims < VALUE_DIM)[None, :] & (total > 0.0)[:, None],
        other=0.0,
    )
    result = tl.sum(part * weight[:, None], 0) / tl.sum(total * weight, 0)
    tl.store(out + (token * HEADS + head) * VALUE_DIM + dims, result, mask=dims < VALUE_DIM)
