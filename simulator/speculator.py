"""A modelled draft model: guesses that are right with a given chance, each after a given time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from drafter.speculators import Guess
from simulator.text import VOCABULARY, next_token
from specfleet.core.types import SamplingParams


class ModelledSpeculator:
    """Implements drafter.speculators.Speculator in virtual time; one drafter machine, its users served one after another."""

    name = "model"
    stride = 1

    def __init__(self, acceptance: Callable[[float], float], draft_seconds: float, rng: np.random.Generator) -> None:
        """`acceptance` by time: the chance that a guess is right, given that those before it are."""
        self.acceptance = acceptance
        self.draft_seconds = draft_seconds
        self.rng = rng
        self.machine = asyncio.Lock()

    def start(self, sampling: SamplingParams) -> ModelledDrafting:
        return ModelledDrafting(self)


class ModelledDrafting:
    def __init__(self, speculator: ModelledSpeculator) -> None:
        self._speculator = speculator

    async def draft(self, text: Sequence[int], count: int) -> list[Guess]:
        own = self._speculator
        believed, guesses = list(text), []
        async with own.machine:
            await asyncio.sleep(count * own.draft_seconds)
        rate = own.acceptance(asyncio.get_running_loop().time())
        for lucky in own.rng.random(count) < rate:
            token = next_token(believed)
            token = token if lucky else (token + 1) % VOCABULARY
            believed.append(token)
            guesses.append(Guess(token))
        return guesses

    async def score(self, text: Sequence[int], count: int) -> int | None:
        own = self._speculator
        async with own.machine:
            await asyncio.sleep(own.draft_seconds)
        rate = own.acceptance(asyncio.get_running_loop().time())
        return int((own.rng.random(count) < rate).sum())

    def close(self) -> None:
        pass
