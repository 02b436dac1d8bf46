"""`hybrid`: prompt lookup where the text repeats itself, a model where it does not.

A looked-up guess costs nothing and a long phrase that has occurred before tends to go on as it did; a model knows something
everywhere. The model's cache catches up with what was looked up in one step, when it is asked next.
"""

from __future__ import annotations

from collections.abc import Sequence

from drafter.speculators import Drafting, Guess, Speculator, Stoppable
from drafter.speculators.ngram import NgramDrafting
from specfleet.core.step import Stop
from specfleet.core.types import SamplingParams

SHORTEST = 3
"""Tokens of a phrase that is worth more than the model's opinion."""


class Hybrid:
    """Speculator over the text itself and another speculator."""

    name = "hybrid"

    def __init__(self, model: Speculator) -> None:
        self._model = model

    @property
    def stride(self) -> int:
        return self._model.stride

    def start(self, sampling: SamplingParams) -> HybridDrafting:
        return HybridDrafting(NgramDrafting(not sampling.match_rule, SHORTEST), self._model.start(sampling))


class HybridDrafting:
    def __init__(self, lookup: NgramDrafting, model: Drafting) -> None:
        self._lookup = lookup
        self._model = model

    async def draft(self, text: Sequence[int], count: int) -> list[Guess]:
        return self._lookup.guess(text, count) or await self._model.draft(text, count)

    async def draft_until(self, text: Sequence[int], count: int, stop: Stop) -> list[Guess]:
        found = self._lookup.guess(text, count)
        if found or not isinstance(self._model, Stoppable):
            return found or await self._model.draft(text, count)
        return await self._model.draft_until(text, count, stop)

    async def score(self, text: Sequence[int], count: int) -> int | None:
        # What lookup would have found costs no more than to look; where it found nothing the model is what would be asked.
        return await self._model.score(text, count)

    def close(self) -> None:
        self._lookup.close()
        self._model.close()
