"""A step cut into tiles, for kernels that walk block tables themselves: pure index arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Tiles:
    """What the kernel reads beside queries, keys and values. All tensors int64, on the device."""

    table: torch.Tensor
    """(tiles, 3): first token, number of queries (0: nothing to do), where in `pages` the sequence's block table begins."""
    positions: torch.Tensor
    """(tokens,): of each token, in the text."""
    places: torch.Tensor
    """(tokens,): index of each token in its sequence's block table; another one than its position for leaves only."""
    pages: torch.Tensor
    """The sequences' block tables, one behind the other."""
    queries: int
    """At most so many in a tile."""
    most_keys: int
    """Of any sequence; a bound."""

    @property
    def count(self) -> int:
        return self.table.shape[0]


def cut(counts: Sequence[int], pages: Sequence[int], queries: int) -> np.ndarray:
    """`Tiles.table` of sequences with `counts` tokens and `pages` pages each: int64 (tiles, 3), at most `queries` to a tile,
    all of one sequence."""
    tokens, held = np.asarray(counts, np.int64), np.asarray(pages, np.int64)
    tiles = -(-tokens // queries)
    sequence = np.repeat(np.arange(len(tokens)), tiles)
    number = np.arange(len(sequence)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    first = (np.cumsum(tokens) - tokens)[sequence] + number * queries
    count = np.minimum(queries, tokens[sequence] - number * queries)
    return np.stack([first, count, (np.cumsum(held) - held)[sequence]], axis=1)


def most_tiles(sequences: int, tokens: int, queries: int) -> int:
    """No step of up to so many sequences and tokens has more tiles."""
    return min(tokens, sequences + tokens // queries)
