"""Where guesses come from. One module each behind one small interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from specfleet.core.step import Confidence, DraftDistribution, Stop
from specfleet.core.types import SamplingParams


class Guess(NamedTuple):
    """A drafted token, and what its drafting session notes of it."""

    token: int
    q: DraftDistribution | None = None
    """The distribution it was sampled from, where acceptance by rejection needs it."""
    confidence: Confidence | None = None
    """How sure its speculator was."""
    source: str = "model"
    """What made it, model or ngram: estimates of one say nothing of the other."""
    features: tuple[float, ...] = ()
    """What its chance was computed from (drafter.early_stop)."""
    chance: float = 1.0
    """Estimated chance that it is right, given that those before it are."""
    seconds: float = 0.0
    """Its share of the time that drafting took."""
    early: bool = False
    """Made on the assumption that a verdict still to come would agree."""
    runner_up_features: tuple[float, ...] = ()
    runner_up_chance: float = 0.0
    """Estimated chance that the runner-up is right (`confidence` names it), given that the guess is the first wrong one."""
    alternative: bool = False
    """The runner-up was sent beside it."""


class Drafting(Protocol):
    """Guesses for one generation."""

    async def draft(self, text: Sequence[int], count: int) -> list[Guess]:
        """Up to `count` guesses of what follows `text` (prompt, output, and guesses so far); fewer, or none, where there is
        nothing to go by. `text` may differ from the last call's anywhere, and goes on changing: it is read before anything
        is awaited."""
        ...

    async def score(self, text: Sequence[int], count: int) -> int | None:
        """How many of the last `count` tokens of `text` it would have guessed, each from the text before it; None where it
        cannot say."""
        ...

    def close(self) -> None:
        """Give back what the generation held."""
        ...


@runtime_checkable
class Stoppable(Drafting, Protocol):
    """Guesses that cost time, and are not made once enough is enough."""

    async def draft_until(self, text: Sequence[int], count: int, stop: Stop) -> list[Guess]:
        """As `draft`, and no more behind a guess for which `stop` said so."""
        ...


class Speculator(Protocol):
    @property
    def name(self) -> str:
        """As metrics and people call it."""
        ...

    @property
    def stride(self) -> int:
        """Tokens worth asking for at once when drafting ahead: few where each costs a step of a model."""
        ...

    def start(self, sampling: SamplingParams) -> Drafting: ...
