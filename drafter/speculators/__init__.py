"""Where guesses come from. One module each behind one small interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from specfleet.core.step import DraftDistribution
from specfleet.core.types import SamplingParams


@dataclass(frozen=True, slots=True)
class Guess:
    """A drafted token. `q` is the distribution it was sampled from, where acceptance by rejection needs it."""

    token: int
    q: DraftDistribution | None = None


class Drafting(Protocol):
    """Guesses for one generation."""

    async def draft(self, text: Sequence[int], count: int) -> list[Guess]:
        """Up to `count` guesses of what follows `text` (prompt, output, and guesses so far); fewer, or none, where there is
        nothing to go by. `text` may differ from the last call's anywhere."""
        ...

    async def score(self, text: Sequence[int], count: int) -> int | None:
        """How many of the last `count` tokens of `text` it would have guessed, each from the text before it; None where it
        cannot say."""
        ...

    def close(self) -> None:
        """Give back what the generation held."""
        ...


class Speculator(Protocol):
    @property
    def name(self) -> str:
        """As metrics and people call it."""
        ...

    @property
    def stride(self) -> int:
        """Tokens worth asking for at once when drafting ahead: one where each costs a step of a model."""
        ...

    def start(self, sampling: SamplingParams) -> Drafting: ...
