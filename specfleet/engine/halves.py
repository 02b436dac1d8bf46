"""Weights that are bfloat16 numbers, kept as such: products of few rows wait for memory, and this is half of it.

Checkpoints mostly come in bfloat16, and on a CPU are computed in float32. Each weight is then a float32 whose lower half is
zero; putting the zeros back is exact, so these are the same products, summed up in another order. All 64 products of the tiny
target's layers, one thread, weights from memory, least of many in milliseconds (oneDNN with float32 weights / these):

    rows      1           2           4          8           16          24           48
              15.4 / 1.7  15.0 / 2.3  6.7 / 2.1  15.0 / 4.0  17.7 / 7.6  18.9 / 12.3  28.8 / 26.4

Without AVX-512, half as many layers, beside other work:

    rows      1           2           4          8           16          32          64          96
              4.8 / 1.9   6.8 / 1.5   8.6 / 2.2  9.2 / 4.0   10.9 / 6.1  17.7 / 11.7 29.7 / 23.0 41.7 / 38.4

The float32 weights stay, for prompts and larger steps, so that it costs half as much memory again.
"""

from __future__ import annotations

import numpy as np
import torch

from specfleet.core.extras import missing

_ROWS, _NARROW_ROWS = 48, 96
"""Up to which it is faster on one thread, with AVX-512 and without."""
_LOWER_HALF = 0xFFFF


class Halves:
    """The upper halves of weights (outputs, inputs)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        from specfleet.engine import products_numba  # imported where it is used: numba may be missing

        self._multiply = products_numba.multiply
        self._outputs = weight.shape[0]
        self.packed = products_numba.pack((weight.contiguous().numpy().view(np.uint32) >> 16).astype(np.uint16))
        self.bias = np.empty(0, np.float32) if bias is None else bias.numpy()
        self._none = np.empty((0, 0), np.float32)
        # oneDNN shares its work among threads and this does not; and the fewer rows, the more it gains by reading less.
        self.rows = (_ROWS if products_numba.WIDE else _NARROW_ROWS) // torch.get_num_threads() ** 2
        """Most rows that a product should have."""

    def product(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """residual + x A^T + b, x (rows, inputs)."""
        out = torch.empty(x.shape[0], self._outputs)
        added = self._none if residual is None else residual.contiguous().numpy()
        self._multiply(x.contiguous().numpy(), self.packed, self.bias, added, out.numpy())
        return out


def halves_of(weight: torch.Tensor, bias: torch.Tensor | None) -> Halves | None:
    """None where weights are no bfloat16 numbers, or nothing is gained here."""
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or missing("numba"):
        return None
    exact = not bool((weight.view(torch.int32) & _LOWER_HALF).any())
    found = Halves(weight, bias) if exact else None
    return found if found and found.rows else None
