"""Token sequences."""

from __future__ import annotations

from collections.abc import Sequence
from operator import eq


def agreeing(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens they begin with in common."""
    length = 0  # by map: zip takes longer to be told that lengths may differ than to find where the two do
    for same in map(eq, one, other):
        if not same:
            break
        length += 1
    return length
