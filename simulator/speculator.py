"""A modelled draft model: guesses that are right with a given chance, each after a given time."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence

from drafter.speculators import Guess
from scheduler.draft_time import DraftProfile
from simulator.clock import sleep
from simulator.text import VOCABULARY, Truth
from specfleet.core.types import SamplingParams

GUESSES = tuple(Guess(token) for token in range(VOCABULARY))
LONGEST_BRANCH = 64
"""Guesses beyond the confirmed text that a drafter may have; more than any policy grants, and than a verifier keeps."""
UNREAL = 7
"""What is added to the right token where a guess stands behind a wrong one."""


class ModelledSpeculator:
    """Implements drafter.speculators.Speculator in virtual time; one drafter machine, its users served one after another, or
    together where it is known how long that takes."""

    name = "model"
    stride = 1

    def __init__(
        self,
        acceptance: Callable[[float], float],
        draft_seconds: float,
        rng: random.Random,
        *,
        shared: bool = True,
        cold_start: float = 0.0,
        together: DraftProfile | None = None,
    ) -> None:
        """`acceptance` by time: the chance that a guess is right, given that those before it are. `shared`: more than one
        generation at a time may draft here. `cold_start`: seconds that the first draft of all takes longer. `together`:
        seconds per token by how many draft at once, instead of `draft_seconds`."""
        self.acceptance = acceptance
        self.draft_seconds = draft_seconds
        self.rng = rng
        self.seconds = 0.0
        """Spent on drafting and scoring."""
        self.cold_start = cold_start
        """What is left of it."""
        self.machine = asyncio.Lock() if shared and together is None else None
        self.together = together
        self.active = 0
        """Generations that draft just now."""
        self.clock = asyncio.get_running_loop().time

    def run(self, count: int) -> int:
        """How many of the next `count` guesses are right before the first that is not: one draw for all of them."""
        rate, chance = self.acceptance(self.clock()), self.rng.random()
        if count == 1 or not 0.0 < rate < 1.0:
            return count if chance < rate else 0
        return min(count, int(math.log(1.0 - chance) / math.log(rate)))

    def start(self, sampling: SamplingParams) -> ModelledDrafting:
        return ModelledDrafting(self)


class ModelledDrafting:
    """One generation's guesses. It is also a speculator that starts itself, for who wants to know what it drafted."""

    __slots__ = ("_speculator", "_truth", "drafted", "name", "stride")

    def __init__(self, speculator: ModelledSpeculator, truth: Truth | None = None) -> None:
        """`truth`: the text, for who works it out anyway."""
        self.name = speculator.name
        self.stride = speculator.stride
        self.drafted = 0
        """Tokens, those included that nobody waited for any more."""
        self._speculator = speculator
        self._truth = truth

    def start(self, sampling: SamplingParams) -> ModelledDrafting:
        return self

    async def draft(self, text: Sequence[int], count: int) -> list[Guess]:
        own, truth = self._speculator, self._truth
        if truth is None:
            truth = self._truth = Truth(text)  # nothing was guessed yet, so all of it is confirmed
        if own.machine is None:
            await self._work(count)
        else:
            async with own.machine:
                await self._work(count)
        end = len(text)
        start = max(truth.start, end - LONGEST_BRANCH)
        tokens = truth.between(start, end + count)
        behind = end - start
        if list(text[start:]) != tokens[:behind]:
            return [GUESSES[(token + UNREAL) % VOCABULARY] for token in tokens[behind:]]
        right = own.run(count)
        guesses = [GUESSES[token] for token in tokens[behind : behind + right]]
        if right < count:
            guesses.append(GUESSES[(tokens[behind + right] + 1) % VOCABULARY])
            guesses += [GUESSES[(token + UNREAL) % VOCABULARY] for token in tokens[behind + right + 1 :]]
        return guesses

    async def _work(self, tokens: int) -> None:
        """The machine's time for so many tokens. Whoever leaves in the middle has drafted what was finished by then."""
        own = self._speculator
        warming, own.cold_start = own.cold_start, 0.0
        own.active += 1
        # Who joins or leaves meanwhile is not looked at: drafts are short, and that evens out.
        each = own.draft_seconds if own.together is None else own.together.at(own.active)
        seconds = tokens * each + warming
        start = own.clock()
        try:
            await sleep(seconds)
        except asyncio.CancelledError:
            spent = own.clock() - start
            own.seconds += spent
            self.drafted += min(tokens, int(max(0.0, spent - warming) / each))
            raise
        finally:
            own.active -= 1
        own.seconds += seconds
        self.drafted += tokens

    async def score(self, text: Sequence[int], count: int) -> int | None:
        own = self._speculator
        if own.machine is None:
            await sleep(own.draft_seconds)
        else:
            async with own.machine:
                await sleep(own.draft_seconds)
        own.seconds += own.draft_seconds
        rate = own.acceptance(own.clock())
        return sum(own.rng.random() < rate for _ in range(count))

    def close(self) -> None:
        pass
