"""A modelled draft model: guesses that are right with a given chance, each after a given time."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from drafter.speculators import Guess
from scheduler.draft_time import DraftProfile
from simulator.clock import sleeper
from simulator.host import EventLoop
from simulator.recorded import Recorded
from simulator.text import TOKENS, VOCABULARY, Truth
from simulator.together import DraftEngine
from specfleet.core.records import made
from specfleet.core.step import Confidence, StepResult, Stop
from specfleet.core.types import SamplingParams

GUESSES = tuple(Guess(token) for token in TOKENS)
NOT_SURE = Guess(0)[3:]
"""Of a guess, what is behind its confidence."""
NOTHING_ELSE = StepResult()[6:]
"""Of a step's result, what is behind its confidence."""
LONGEST_BRANCH = 64
"""Guesses beyond the confirmed text that a drafter may have; more than any policy grants, and than a verifier keeps."""
OTHERS = 5
"""Tokens that share what the chosen one leaves, in a confidence."""
UNREAL = 7
"""What is added to the right token where a guess stands behind a wrong one."""


def confident(rate: float, right: bool, distance: float, rng: random.Random) -> Confidence:
    """A draft model's confidence in a guess: normal in log-odds of the token's probability, `distance` standard deviations
    higher where the guess is right. Its distribution is that of one likely token and a few even ones."""
    likely = 0.03 if rate < 0.03 else 0.97 if rate > 0.97 else rate
    odds = math.log(likely / (1.0 - likely)) + distance * (right - rate) + rng.gauss(0.0, 1.0)
    chosen = 1.0 / (1.0 + math.exp(-odds))
    rest = (1.0 - chosen) / OTHERS
    log_chosen, log_rest = math.log(chosen), math.log(rest)
    entropy = -chosen * log_chosen - (1.0 - chosen) * log_rest
    spread = abs(log_chosen - log_rest) * math.sqrt(chosen * (1.0 - chosen))
    return made(Confidence, (chosen, entropy, chosen - rest, spread, None, 0.0))


class ModelledSpeculator:
    """Implements drafter.speculators.Speculator in virtual time; one drafter machine, its users served one after another, or
    together where it is known how long that takes."""

    __slots__ = (
        "acceptance",
        "active",
        "clock",
        "cold_start",
        "confidence",
        "daemon",
        "draft_seconds",
        "engine",
        "machine",
        "rng",
        "seconds",
        "sleep",
        "threads",
        "together",
    )

    name = "model"
    stride = 1

    def __init__(
        self,
        acceptance: Callable[[float], float] | float,
        draft_seconds: float,
        rng: random.Random,
        *,
        shared: bool = True,
        cold_start: float = 0.0,
        together: DraftProfile | None = None,
        confidence: float | None = None,
        daemon: EventLoop | None = None,
        threads: float = 1.0,
    ) -> None:
        """`acceptance`, or what it is by time: the chance that a guess is right, given that those before it are. `shared`:
        more than one generation at a time may draft here. `cold_start`: seconds that the first draft of all takes longer.
        `together`: seconds per token by how many draft at once, instead of `draft_seconds`. `confidence`: see Tier. `daemon`:
        the drafter's, on a machine that others share; the model then computes on so many `threads` of it."""
        self.acceptance = acceptance
        self.draft_seconds = draft_seconds
        self.rng = rng
        self.seconds = 0.0
        """Spent on drafting and scoring."""
        self.cold_start = cold_start
        """What is left of it."""
        self.machine = asyncio.Lock() if shared and together is None else None
        self.together = together
        self.confidence = confidence
        self.daemon = daemon
        self.threads = threads
        self.engine = DraftEngine(together, daemon, threads) if together is not None and daemon is not None else None
        """Where machines are shared, who drafts together does so call by call; elsewhere each as if nobody came or went."""
        self.active = 0
        """Generations that draft just now."""
        self.clock = asyncio.get_running_loop().time
        self.sleep = sleeper()

    def work(self, seconds: float) -> Awaitable[None]:
        """Lets them pass."""
        return self.sleep(seconds) if self.daemon is None else self.daemon.called(seconds, self.threads)

    def rate(self) -> float:
        """Its acceptance now."""
        rate = self.acceptance
        return rate if isinstance(rate, float) else rate(self.clock())

    def run(self, count: int) -> int:
        """How many of the next `count` guesses are right before the first that is not: one draw for all of them."""
        rate, chance = self.rate(), self.rng.random()
        if count == 1 or not 0.0 < rate < 1.0:
            return count if chance < rate else 0
        return min(count, int(math.log(1.0 - chance) / math.log(rate)))

    def start(self, sampling: SamplingParams) -> ModelledDrafting:
        return ModelledDrafting(self)


class ModelledDrafting:
    """One generation's guesses. It is also a speculator that starts itself, for who wants to know what it drafted."""

    __slots__ = ("_recorded", "_speculator", "_truth", "drafted", "name", "stride")

    def __init__(
        self, speculator: ModelledSpeculator, truth: Truth | None = None, recorded: Recorded | None = None
    ) -> None:
        """`truth`: the text, for who works it out anyway; `recorded`: where guesses of it are right, instead of by chance."""
        self.name = speculator.name
        self.stride = speculator.stride
        self.drafted = 0
        """Tokens, those included that nobody waited for any more."""
        self._speculator = speculator
        self._truth = truth
        self._recorded = recorded

    def start(self, sampling: SamplingParams) -> ModelledDrafting:
        return self

    def draft(self, text: Sequence[int], count: int) -> Coroutine[Any, Any, list[Guess]]:
        return self._made(text, count, None) if self._speculator.machine is None else self._in_turn(text, count, None)

    def draft_until(self, text: Sequence[int], count: int, stop: Stop) -> Coroutine[Any, Any, list[Guess]]:
        return self._made(text, count, stop) if self._speculator.machine is None else self._in_turn(text, count, stop)

    async def _in_turn(self, text: Sequence[int], count: int, stop: Stop | None) -> list[Guess]:
        machine, text = self._speculator.machine, list(text)
        assert machine is not None
        async with machine:
            return await self._made(text, count, stop)

    async def _made(self, text: Sequence[int], count: int, stop: Stop | None) -> list[Guess]:
        """Guesses, after the machine's time for them. Whoever leaves in the middle has drafted what was finished by then."""
        own, guesses = self._speculator, self._guesses(text, count, stop)
        tokens, warming, own.cold_start = len(guesses), own.cold_start, 0.0
        if own.engine is not None:
            await self._work_together(own.engine, tokens, warming)
            return guesses
        own.active += 1
        # Who joins or leaves meanwhile is not looked at: drafts are short, and that evens out.
        each = own.draft_seconds if own.together is None else own.together.at(own.active)
        seconds = tokens * each + warming
        start = own.clock()
        try:
            await own.work(seconds)
        except asyncio.CancelledError:
            spent = own.clock() - start
            own.seconds += spent
            self.drafted += min(tokens, int(max(0.0, spent - warming) / each))
            raise
        finally:
            own.active -= 1
        own.seconds += seconds
        self.drafted += tokens
        return guesses

    def _guesses(self, text: Sequence[int], count: int, stop: Stop | None) -> list[Guess]:
        """What it will say, right up to a point that chance decides, and no more behind a guess for which `stop` said so."""
        own, truth = self._speculator, self._truth
        if truth is None:
            truth = self._truth = Truth(text)  # nothing was guessed yet, so all of it is confirmed
        end = len(text)
        start = max(truth.start, end - LONGEST_BRANCH)
        behind, tokens = end - start, truth.between(start, end + count)
        astray, tokens = list(text[start:]) != tokens[:behind], tokens[behind:]
        if astray:
            said = [(token + UNREAL) % VOCABULARY for token in tokens]
        else:
            recorded = self._recorded
            right = own.run(count) if recorded is None else recorded.run(end - truth.start, count)
            said = tokens[:right]
            if right < count:
                said.append((tokens[right] + 1) % VOCABULARY)
                said += [(token + UNREAL) % VOCABULARY for token in tokens[right + 1 :]]
        return [GUESSES[token] for token in said] if own.confidence is None else self._confident(said, tokens, stop)

    def _confident(self, said: list[int], tokens: list[int], stop: Stop | None) -> list[Guess]:
        """Guesses of these `tokens`, with confidences. Behind a wrong guess a draft model is as sure of itself as anywhere:
        what it says next is likely after what it said."""
        own = self._speculator
        assert own.confidence is not None
        rate, distance, rng = own.rate(), own.confidence, own.rng
        sure: list[Guess] = []
        for guess, token in zip(said, tokens, strict=True):
            unreal = guess == (token + UNREAL) % VOCABULARY
            confidence = confident(rate, rng.random() < rate if unreal else guess == token, distance, rng)
            sure.append(made(Guess, (guess, None, confidence, *NOT_SURE)))
            if stop is not None and stop(made(StepResult, (0, (guess,), None, None, 0, confidence, *NOTHING_ELSE))):
                break
        return sure

    async def _work_together(self, engine: DraftEngine, tokens: int, warming: float) -> None:
        own = self._speculator
        job, start = engine.draft(tokens, warming), own.clock()
        try:
            await job.done
        finally:
            own.seconds += own.clock() - start
            self.drafted += job.made
            self.stride = engine.stride

    async def score(self, text: Sequence[int], count: int) -> int | None:
        own = self._speculator
        if own.machine is None:
            await own.work(own.draft_seconds)
        else:
            async with own.machine:
                await own.work(own.draft_seconds)
        own.seconds += own.draft_seconds
        rate = own.rate()
        return sum(own.rng.random() < rate for _ in range(count))

    def close(self) -> None:
        pass
