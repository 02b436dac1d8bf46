"""Weights that are bfloat16 numbers, kept as such: products of few rows wait for memory, and this is half of it.

Checkpoints mostly come in bfloat16, and on a CPU are computed in float32. Each weight is then a float32 whose lower half is
zero; putting the zeros back is exact, so these are the same products, summed up in another order. All 64 products of the tiny
target's layers, one thread, weights from memory, milliseconds (oneDNN with float32 weights / these):

    rows      1          2          3          4          6          8          16
              8.0 / 2.3  12.7 / 2.7 7.7 / 3.5  7.2 / 4.7  7.3 / 5.6  9.6 / 7.5  14.3 / 15.1

The float32 weights stay, for prompts and larger steps, so that it costs half as much memory again.
"""

from __future__ import annotations

import numpy as np
import torch

from specfleet.core.extras import missing

_ROWS = 8
"""Up to which it is faster on one thread. oneDNN shares its work among threads, and this does not."""
_LOWER_HALF = 0xFFFF


class Halves:
    """The upper halves of weights (outputs, inputs)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        from specfleet.engine import numba_kernels  # imported where it is used: numba may be missing

        self._multiply = numba_kernels.multiply
        self.weight = (weight.contiguous().numpy().view(np.uint32) >> 16).astype(np.uint16)
        self.bias = np.empty(0, np.float32) if bias is None else bias.numpy()
        self._none = np.empty((0, 0), np.float32)
        self.rows = _ROWS // torch.get_num_threads()
        """Most rows that a product should have."""

    def product(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """residual + x A^T + b, x (rows, inputs)."""
        out = torch.empty(x.shape[0], self.weight.shape[0])
        added = self._none if residual is None else residual.contiguous().numpy()
        self._multiply(x.contiguous().numpy(), self.weight, self.bias, added, out.numpy())
        return out


def halves_of(weight: torch.Tensor, bias: torch.Tensor | None) -> Halves | None:
    """None where weights are no bfloat16 numbers, or nothing is gained here."""
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or missing("numba"):
        return None
    exact = not bool((weight.view(torch.int32) & _LOWER_HALF).any())
    return Halves(weight, bias) if exact and torch.get_num_threads() <= _ROWS else None
