"""Products of few sizes. oneDNN compiles a kernel for each number of rows that it meets, and keeps a thousand of them, half a
megabyte each: with prompts of every length, memory that grows for hours, and a millisecond or more for every new length."""

from __future__ import annotations

import torch
from torch.nn.functional import pad


def padded_rows(rows: int) -> int:
    """The number of rows that a product of `rows` is filled up to: exact up to 16, then eight sizes from a power of two to the
    next, so at most an eighth more."""
    step = 1 << max(0, (rows - 1).bit_length() - 4)
    return -(-rows // step) * step


def filled_up(x: torch.Tensor) -> torch.Tensor:
    """x (…, rows, width) with `padded_rows(rows)` rows, zeros behind its own; x itself where it has as many."""
    rows = x.shape[-2]
    missing = padded_rows(rows) - rows
    return pad(x, (0, 0, 0, missing)) if missing else x
