"""`model`: a small language model, one batched engine for all local users."""

from __future__ import annotations

from collections.abc import Sequence

from drafter.batcher import DraftBatcher, Line
from drafter.speculators import Guess
from specfleet.core.step import Stop
from specfleet.core.types import SamplingParams

GATHER_SECONDS = 0.003
"""Guesses ahead that are made in this time are asked for at once. Each request costs the way to the engine's thread and back,
0.2 ms where a small model's step takes 0.6; and they would share a message anyway (drafter.session.COALESCE_SECONDS)."""


class Model:
    """Speculator over a draft model q."""

    name = "model"

    def __init__(self, batcher: DraftBatcher, context_length: int) -> None:
        self._batcher = batcher
        self._context_length = context_length

    @property
    def stride(self) -> int:
        return self._batcher.burst(GATHER_SECONDS)

    def start(self, sampling: SamplingParams) -> ModelDrafting:
        return ModelDrafting(self._batcher.line(sampling), self._context_length)


class ModelDrafting:
    def __init__(self, line: Line, context_length: int) -> None:
        self._line = line
        self._context_length = context_length

    async def draft(self, text: Sequence[int], count: int) -> list[Guess]:
        return await self._draft(text, count, None)

    async def draft_until(self, text: Sequence[int], count: int, stop: Stop) -> list[Guess]:
        return await self._draft(text, count, stop)

    async def _draft(self, text: Sequence[int], count: int, stop: Stop | None) -> list[Guess]:
        # Past its own context the draft model has nothing to say; the target goes on alone.
        count = min(count, self._context_length - len(text))
        return await self._line.draft(text, count, stop) if count > 0 else []

    async def score(self, text: Sequence[int], count: int) -> int | None:
        return await self._line.score(text, count) if len(text) < self._context_length else None

    def close(self) -> None:
        self._line.close()
