"""Products with weights that are bfloat16 numbers, in tiles that stay in registers.

A tile is some rows times some outputs. Each step along the inputs loads the tile's weights once, makes them whole by a shift
and a mask, and multiplies them with each row's number: there are as many sums as registers hold, so that the processor
multiplies all the time and memory is read meanwhile. Loops in Python would leave it to LLVM which numbers stay in registers,
and it does not see this; so the tile is said in LLVM's own words.

Each sum is taken in the order of the inputs, whatever the number of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from specfleet.engine.compiled import fast

WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""32 registers of 16 numbers each; otherwise 16 of eight are supposed."""
_LANES = 16
_ROWS, _WORDS = (6, 2) if WIDE else (3, 1)
"""Of a tile: rows at most, and vectors of words. A word holds the weights of two outputs. With fewer rows the same weights are
loaded for less, so products are cut into as few tiles as there can be, of about as many rows each."""
OUTPUTS = 2 * _LANES * _WORDS
"""Of a tile."""

_index, _float, _word = ir.IntType(64), ir.FloatType(), ir.IntType(32)
_floats, _words = ir.VectorType(_float, _LANES), ir.VectorType(_word, _LANES)


@intrinsic
def _tile(
    typing: Any, rows: Any, x: Any, x_stride: Any, block: Any, inputs: Any, out: Any, out_stride: Any
) -> tuple[Any, Any]:
    """The product of 1 to `_ROWS` rows with one block of `pack`. Arguments: rows; address of the first and numbers from one to
    the next; address of the block; inputs; address of the first sum and numbers from one row to the next."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        rows, *rest = arguments
        after = builder.append_basic_block("after")
        sizes = [builder.append_basic_block(f"rows{size}") for size in range(1, _ROWS + 1)]
        choice = builder.switch(rows, sizes[-1])
        for size, own in enumerate(sizes, 1):
            choice.add_case(ir.Constant(_index, size), own)
            builder.position_at_end(own)
            _build_tile(builder, size, *rest)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), build


def _build_tile(
    builder: ir.IRBuilder, rows: int, x: Any, x_stride: Any, block: Any, inputs: Any, out: Any, out_stride: Any
) -> None:
    """Its code for so many rows."""
    zero, one = ir.Constant(_index, 0), ir.Constant(_index, 1)
    from_row = [
        builder.gep(builder.inttoptr(x, _float.as_pointer()), [builder.mul(x_stride, ir.Constant(_index, row))])
        for row in range(rows)
    ]
    weights = builder.inttoptr(block, _words.as_pointer())
    before, loop = builder.block, builder.append_basic_block("along_inputs")
    builder.branch(loop)
    builder.position_at_end(loop)
    at = builder.phi(_index)
    at.add_incoming(zero, before)
    sums = [[builder.phi(_floats) for _ in range(2 * _WORDS)] for _ in range(rows)]
    own = [spread(builder, builder.load(builder.gep(row, [at]), align=4), _LANES) for row in from_row]
    for number in range(_WORDS):
        place = builder.add(builder.mul(at, ir.Constant(_index, _WORDS)), ir.Constant(_index, number))
        word = builder.load(builder.gep(weights, [place]), align=4)
        low = builder.shl(word, ir.Constant(_words, [16] * _LANES))
        high = builder.and_(word, ir.Constant(_words, [0xFFFF0000] * _LANES))
        for half, bits in enumerate((low, high)):
            weight = builder.bitcast(bits, _floats)
            for row in range(rows):
                total = sums[row][2 * number + half]
                product = builder.fmul(weight, own[row], flags=("contract",))
                total.add_incoming(ir.Constant(_floats, [0.0] * _LANES), before)
                total.add_incoming(builder.fadd(product, total, flags=("contract",)), loop)
    following = builder.add(at, one)
    at.add_incoming(following, loop)
    after = builder.append_basic_block("summed")
    builder.cbranch(builder.icmp_signed("<", following, inputs), loop, after)
    builder.position_at_end(after)
    first = builder.inttoptr(out, _float.as_pointer())
    for row, own in enumerate(sums):
        for number, total in enumerate(own):
            place = builder.add(builder.mul(out_stride, ir.Constant(_index, row)), ir.Constant(_index, number * _LANES))
            target = builder.bitcast(builder.gep(first, [place]), _floats.as_pointer())
            builder.store(total.incomings[1][0], target, align=4)


def spread(builder: ir.IRBuilder, number: Any, lanes: int) -> Any:
    """A vector of so many times the float32 `number`."""
    nothing = ir.Constant(ir.VectorType(_float, lanes), ir.Undefined)
    first = builder.insert_element(nothing, number, ir.Constant(_word, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_word, lanes), [0] * lanes))


@njit(inline="always")
def address(array: Any) -> int:
    """Where it begins, signed: with an unsigned number, sums of places would become floats."""
    return np.intp(array.ctypes.data)  # type: ignore[no-any-return]


def pack(halves: np.ndarray) -> np.ndarray:
    """`halves` uint16 (outputs, inputs), the upper halves of float32 weights, as the tiles read them: uint32 (blocks, inputs,
    words, lanes), the outputs filled up with zeros to whole blocks."""
    outputs, inputs = halves.shape
    blocks = -(-outputs // OUTPUTS)
    whole = np.zeros((blocks * OUTPUTS, inputs), np.uint32)
    whole[:outputs] = halves
    low, high = whole.reshape(blocks, _WORDS, 2, _LANES, inputs).transpose(2, 0, 4, 1, 3)
    packed = (
        torch.empty(low.shape, dtype=torch.int32).numpy().view(np.uint32)
    )  # torch's memory begins with a cache line
    np.bitwise_or(low, high << 16, out=packed)
    return packed


@fast
def multiply(x: Any, packed: Any, bias: Any, residual: Any, out: Any) -> None:
    """x A^T, plus `bias` and `residual` where they are not empty. x (rows, inputs); `packed` by `pack`; bias (outputs,);
    residual and `out` (rows, outputs). Contiguous, all of them."""
    rows, inputs = x.shape
    outputs = out.shape[1]
    spare = np.empty((_ROWS, OUTPUTS), np.float32)
    for b in range(packed.shape[0]):
        block, first = address(packed) + b * inputs * _WORDS * _LANES * 4, b * OUTPUTS
        used = min(OUTPUTS, outputs - first)
        row = 0
        while row < rows:
            source = address(x) + row * inputs * 4
            target, stride = address(out) + (row * outputs + first) * 4, outputs
            if used < OUTPUTS:
                target, stride = address(spare), OUTPUTS
            left = rows - row
            tiles = (left + _ROWS - 1) // _ROWS
            count = (left + tiles - 1) // tiles
            _tile(count, source, inputs, block, inputs, target, stride)
            if used < OUTPUTS:
                out[row : row + count, first:] = spare[:count, :used]
            row += count
    for row in range(rows):
        if len(bias) > 0:
            for o in range(outputs):
                out[row, o] += bias[o]
        if len(residual) > 0:
            for o in range(outputs):
                out[row, o] += residual[row, o]
