"""Prompt lookup: what it guesses from the text alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from drafter.speculators.ngram import LONGEST, Ngram, NgramDrafting
from specfleet.core.step import DraftDistribution
from specfleet.core.types import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


def start(sampling: SamplingParams = GREEDY) -> NgramDrafting:
    return Ngram().start(sampling)


def guesses(drafting: NgramDrafting, text: Sequence[int], count: int) -> list[int]:
    return [guess.token for guess in asyncio.run(drafting.draft(text, count))]


def test_what_followed_last_time_follows_again() -> None:
    """The text goes on as it did behind the phrase it ends in."""
    assert [4, 5] == guesses(start(), [1, 2, 3, 4, 5, 9, 2, 3], 2)


def test_the_longest_phrase_decides() -> None:
    """A longer phrase that occurred earlier counts more than a shorter one that occurred later."""
    assert [7] == guesses(start(), [1, 2, 7, 0, 2, 8, 0, 1, 2], 1)
    assert LONGEST == 4
    text = [1, 2, 3, 4, 5, 7, 9, 2, 3, 4, 5, 8, 1, 2, 3, 4, 5]
    assert [8] == guesses(start(), text, 1), "phrases longer than LONGEST are as good as those"


def test_of_equal_phrases_the_latest_decides() -> None:
    """The most recent earlier occurrence is the best guess."""
    assert [8] == guesses(start(), [1, 7, 1, 8, 1], 1)


def test_a_phrase_that_runs_into_the_end_repeats_itself() -> None:
    """As many guesses as asked for, however near the end the phrase was."""
    assert [1, 2, 1, 2, 1] == guesses(start(), [1, 2, 1, 2], 5)
    assert [7, 7, 7] == guesses(start(), [7, 7], 3)


@pytest.mark.parametrize("text", [[], [1], [1, 2, 3]])
def test_without_a_phrase_that_occurred_there_is_no_guess(text: list[int]) -> None:
    """Nothing to go by is no error."""
    assert [] == guesses(start(), text, 4)


def test_no_more_than_asked_for() -> None:
    """`count` guesses, down to none."""
    assert [3] == guesses(start(), [1, 2, 3, 1, 2], 1)
    assert [] == guesses(start(), [1, 2, 3, 1, 2], 0)


def test_the_index_grows_with_the_text() -> None:
    """A text given piece by piece is guessed from as one given at once."""
    text = [1, 2, 3, 1, 2, 4, 1, 2]
    drafting = start()
    grown = [guesses(drafting, text[:end], 3) for end in range(1, len(text) + 1)]
    assert [guesses(start(), text[:end], 3) for end in range(1, len(text) + 1)] == grown


def test_a_rolled_back_text_is_indexed_anew_from_the_change() -> None:
    """What replaced a wrong guess is found, also when the text has the same length and the same end as before."""
    drafting = start()
    guesses(drafting, [1, 2, 3, 4, 5, 6], 1)
    guesses(drafting, [1, 2, 3, 8, 9, 6], 1)
    assert [9, 6] == guesses(drafting, [1, 2, 3, 8, 9, 6, 8], 2)
    assert [] == guesses(drafting, [1, 2, 3, 8], 1)


def test_a_guess_is_certain_of_itself() -> None:
    """Acceptance by rejection gets a distribution that holds the guess alone; match needs none."""
    found = asyncio.run(start(SamplingParams()).draft([1, 2, 1], 2))
    assert [DraftDistribution((2,), (1.0,)), DraftDistribution((1,), (1.0,))] == [guess.q for guess in found]
    for sampling in (GREEDY, SamplingParams(seed=0)):
        assert {None} == {guess.q for guess in asyncio.run(start(sampling).draft([1, 2, 1], 2))}


def test_generations_share_nothing() -> None:
    """One's text is no source for another's, and a closed one starts over."""
    ngram = Ngram()
    one, other = ngram.start(GREEDY), ngram.start(GREEDY)
    guesses(one, [1, 2, 3], 1)
    assert [] == guesses(other, [1], 1)
    one.close()
    assert [] == guesses(one, [5, 6], 1)
