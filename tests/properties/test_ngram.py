"""Prompt lookup against a search by brute force, and under rollbacks of any kind."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from drafter.speculators.ngram import LONGEST, SHORTEST, NgramDrafting

TEXTS = st.lists(st.integers(0, 3), max_size=40)


def guess(drafting: NgramDrafting, text: list[int], count: int) -> list[int]:
    return [one.token for one in asyncio.run(drafting.draft(text, count))]


def search(text: list[int], count: int) -> list[int]:
    """What followed the latest earlier occurrence of the longest phrase the text ends in, repeating from there."""
    for size in range(min(LONGEST, len(text)), SHORTEST - 1, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[-size:]:
                following = text[end:]
                while len(following) < count:
                    following = following + following
                return following[:count]
    return []


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.lists(st.integers(1, 40), max_size=6), st.integers(0, 12))
def test_a_growing_text_is_looked_up_as_by_brute_force(text: list[int], stops: list[int], count: int) -> None:
    """Where the text only grows, in steps of any size, the index finds what a search through all of it finds."""
    drafting = NgramDrafting(with_q=False)
    for end in [*sorted(stops), len(text)]:
        assert search(text[:end], count) == guess(drafting, text[:end], count)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), TEXTS), max_size=8), st.integers(1, 12))
def test_rollbacks_never_raise(changes: list[tuple[int, list[int]]], count: int) -> None:
    """Whatever becomes of the text, there are `count` guesses or none, all of them tokens of the text. (An entry that a
    rollback made stale may hide an older one.)"""
    drafting = NgramDrafting(with_q=False)
    text: list[int] = []
    for keep, more in changes:
        text = text[:keep] + more
        found = guess(drafting, text, count)
        assert len(found) in (0, count)
        assert set(found) <= set(text)
        assert drafting._text == text
