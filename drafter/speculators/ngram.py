"""`ngram`: prompt lookup. The longest recent phrase that has occurred before is assumed to go on as it did then.

Saxena, "Prompt Lookup Decoding", 2023. Needs no model and no torch; good where output repeats input (summaries, code edits).
"""

from __future__ import annotations

from collections.abc import Sequence

from drafter.speculators import Guess
from specfleet.core.step import Confidence, DraftDistribution
from specfleet.core.types import SamplingParams

LONGEST = 4
SHORTEST = 1


class Ngram:
    """Speculator over the text itself."""

    name = "ngram"
    stride = 32

    def start(self, sampling: SamplingParams) -> NgramDrafting:
        return NgramDrafting(with_q=not sampling.match_rule)


class NgramDrafting:
    """An index from every n-gram of the text to where it last ended, grown as the text grows."""

    def __init__(self, with_q: bool, shortest: int = SHORTEST) -> None:
        """`shortest`: phrases of fewer tokens count as none."""
        self._with_q = with_q
        self._shortest = shortest
        self._text: list[int] = []
        self._ends: list[dict[tuple[int, ...], int]] = [{} for _ in range(LONGEST + 1)]

    async def draft(self, text: Sequence[int], count: int) -> list[Guess]:
        return self.guess(text, count)

    def guess(self, text: Sequence[int], count: int) -> list[Guess]:
        """As `draft`, at once."""
        size, tokens = self._lookup(text, count)
        # There is no distribution: how long the phrase was is all that says how sure to be.
        confidence = Confidence(chosen=size / (LONGEST + 1), entropy=0.0, margin=0.0, spread=0.0)
        return [Guess(token, self._q(token), confidence, Ngram.name) for token in tokens]

    async def score(self, text: Sequence[int], count: int) -> int | None:
        return sum(self._lookup(text[:at], 1)[1] == [text[at]] for at in range(len(text) - count, len(text)))

    def close(self) -> None:
        self._text.clear()

    def _lookup(self, text: Sequence[int], count: int) -> tuple[int, list[int]]:
        """Length of the longest phrase the text ends in that has occurred before, and what followed it the last time."""
        self._index(text)
        for size in range(LONGEST, self._shortest - 1, -1):
            end = self._ends[size].get(tuple(text[-size:]), len(text)) if len(text) >= size else len(text)
            # What was indexed before a rollback may lie beyond the text's present end.
            if end < len(text):
                return size, self._continue(text, end, count)
        return 0, []

    @staticmethod
    def _continue(text: Sequence[int], start: int, count: int) -> list[int]:
        """`count` tokens from `start` on; a phrase that runs into the end of the text repeats itself."""
        period = len(text) - start
        return [text[start + offset % period] for offset in range(count)]

    def _index(self, text: Sequence[int]) -> None:
        """Index all n-grams that end before the last token. A text that was rolled back is indexed anew from the change;
        entries of what is gone point at most at another place of the present text, which is a poor guess and no error."""
        same = self._common(text)
        del self._text[same:]
        for end in range(max(1, same), len(text)):
            for size in range(SHORTEST, min(LONGEST, end) + 1):
                self._ends[size][tuple(text[end - size : end])] = end
        self._text.extend(text[same:])

    def _common(self, text: Sequence[int]) -> int:
        """Length of the common prefix with what is indexed."""
        length = min(len(self._text), len(text))
        if self._text[:length] == list(text[:length]):
            return length
        return next(at for at in range(length) if self._text[at] != text[at])

    def _q(self, token: int) -> DraftDistribution | None:
        return DraftDistribution((token,), (1.0,)) if self._with_q else None
