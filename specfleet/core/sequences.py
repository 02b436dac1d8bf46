"""Token sequences."""

from __future__ import annotations

from collections.abc import Sequence


def agreeing(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens they begin with in common."""
    length = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        length += 1
    return length
