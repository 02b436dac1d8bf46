"""A fleet in virtual time: one verifier as it is in production, and clients that ask for one text after another."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np

from drafter.pace import Pace
from drafter.session import DraftingSession
from scheduler import Scheduler, SchedulerConfig
from scheduler.step_time import StepProfile, StepShape
from simulator.clock import run
from simulator.engine import ModelledEngine
from simulator.network import Connection
from simulator.speculator import ModelledSpeculator
from simulator.text import VOCABULARY, Truth
from specfleet.core.errors import SpecfleetError
from specfleet.core.protocol import Open, Verdict
from specfleet.core.types import ModelInfo, SamplingParams
from specfleet.core.vocabulary import Vocabulary
from verifier.loop import BatchLoop
from verifier.verifier import Limits, Verifier

TABLE = Vocabulary(tuple(f"t{number}" for number in range(VOCABULARY)), ())
DIGEST = TABLE.digest()
CONTEXT = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSpec:
    """One user's machine."""

    identity: str = ""
    acceptance: float | Callable[[float], float] = 0.7
    """Chance that a guess is right; constant, or by time."""
    draft_seconds: float = 0.005
    """Per drafted token."""
    round_trip: float = 0.02
    """Seconds to the verifier and back."""
    streams: int = 1
    """Texts at a time."""
    prompt_tokens: int = 64
    output_tokens: int = 256
    service_class: str = ""
    can_draft: bool = True


@dataclass(slots=True)
class ClientResult:
    """What a client got between the warm-up and the end."""

    spec: ClientSpec
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    refused: int = 0
    """Generations that the verifier did not let in."""
    times: list[tuple[float, int]] = field(default_factory=list)
    """When tokens came, and how many: the whole run."""


@dataclass(frozen=True, slots=True)
class FleetResult:
    clients: list[ClientResult]
    seconds: float
    """Counted: without the warm-up."""
    steps: int
    busy_seconds: float

    @property
    def rates(self) -> list[float]:
        """Tokens per second, by client."""
        return [client.tokens / self.seconds for client in self.clients]

    @property
    def tokens_per_second(self) -> float:
        return sum(self.rates)

    @property
    def log_utility(self) -> float:
        """Sum over clients of log tokens per second."""
        return sum(math.log(max(rate, 1e-9)) for rate in self.rates)


def simulate(
    config: SchedulerConfig,
    profile: StepProfile,
    clients: Sequence[ClientSpec],
    *,
    seconds: float,
    warm_up: float = 0.0,
    noise: float = 0.03,
    seed: int = 0,
    max_sessions: int = 100_000,
) -> FleetResult:
    """Run `clients` for `seconds` of virtual time against a verifier whose steps take what `profile` says, times a normal
    variation of `noise`. Raises AssertionError if a text is not the target's own."""
    return run(_simulate(config, profile, clients, seconds, warm_up, noise, seed, max_sessions))


async def _simulate(
    config: SchedulerConfig,
    profile: StepProfile,
    clients: Sequence[ClientSpec],
    seconds: float,
    warm_up: float,
    noise: float,
    seed: int,
    max_sessions: int,
) -> FleetResult:
    seeds = np.random.SeedSequence(seed)
    clock = asyncio.get_running_loop().time
    engine = ModelledEngine(_step_seconds(profile, noise, np.random.default_rng(seeds.spawn(1)[0])))
    loop = BatchLoop(engine, Scheduler(config), clock)
    model = ModelInfo("modelled", VOCABULARY, TABLE.digest(), CONTEXT, (), service_classes=config.classes)
    limits = Limits(max_sessions=max_sessions, kv_tokens=engine.total_pages * engine.page_size, idle_seconds=3600.0)
    verifier = Verifier(loop, model, TABLE, {}, limits, "verifier")
    batches = asyncio.create_task(loop.run())
    results = [ClientResult(spec) for spec in clients]
    users = []
    for number, (result, own) in enumerate(zip(results, seeds.spawn(len(clients)), strict=True)):
        user = User(result, verifier, np.random.default_rng(own), number, warm_up)
        users += [asyncio.create_task(user.stream(index)) for index in range(result.spec.streams)]
    await asyncio.sleep(seconds)
    for task in users:
        task.cancel()
    await asyncio.gather(*users, return_exceptions=True)
    failed = next((task.exception() for task in users if not task.cancelled() and task.exception()), None)
    if failed is not None:
        raise failed
    if batches.done():
        batches.result()
    batches.cancel()
    await asyncio.gather(batches, return_exceptions=True)
    return FleetResult(results, seconds - warm_up, engine.steps, engine.busy_seconds)


def _step_seconds(profile: StepProfile, noise: float, rng: np.random.Generator) -> Callable[[StepShape], float]:
    fixed, token, cached, pair = map(float, profile.coefficients)

    def seconds(shape: StepShape) -> float:
        base = fixed + token * shape.tokens + cached * shape.cached + pair * shape.pairs
        return base * max(0.5, 1.0 + noise * float(rng.standard_normal()))

    return seconds


class User:
    """One client: its machine, and the streams it has open."""

    def __init__(
        self, result: ClientResult, verifier: Verifier, rng: np.random.Generator, number: int, warm_up: float
    ) -> None:
        spec = result.spec
        self._result = result
        self._spec = spec
        self._number = number
        self._warm_up = warm_up
        rate = spec.acceptance
        acceptance = rate if callable(rate) else lambda now: rate
        self._speculator = ModelledSpeculator(
            acceptance, spec.draft_seconds, random.Random(int(rng.integers(2**63))), shared=spec.streams > 1
        )
        self._connection = Connection(verifier, spec.identity or f"client-{number}", lambda: spec.round_trip / 2.0)
        self._pace = Pace()

    async def stream(self, index: int) -> None:
        """One text after another, for ever."""
        clock = asyncio.get_running_loop().time
        text = 0
        while True:
            text += 1
            seed = (self._number * 131 + index * 17 + text) % VOCABULARY
            prompt = tuple((seed + place) % VOCABULARY for place in range(self._spec.prompt_tokens))
            opening = Open(
                prompt=prompt,
                sampling=SamplingParams(max_tokens=self._spec.output_tokens, temperature=0.0),
                service_class=self._spec.service_class,
                vocabulary_digest=DIGEST,
                can_draft=self._spec.can_draft,
                draft_seconds_per_token=self._pace.draft_seconds.value,
                round_trip_seconds=self._pace.round_trip.value,
            )
            session = DraftingSession(opening, self._connection, self._speculator, clock, pace=self._pace)
            try:
                await self._generate(session, Truth(prompt))
            except SpecfleetError as error:
                if error.retry_after is None:
                    raise
                self._result.refused += 1
                await asyncio.sleep(error.retry_after)

    async def _generate(self, session: DraftingSession, truth: Truth) -> None:
        clock = asyncio.get_running_loop().time
        async with aclosing(session.run()) as messages:
            async for message in messages:
                if not isinstance(message, Verdict):
                    continue
                end = message.position + len(message.tokens)
                assert list(message.tokens) == truth.between(message.position, end), "the text is not the target's own"
                self._count(message, clock())

    def _count(self, verdict: Verdict, now: float) -> None:
        self._result.times.append((now, len(verdict.tokens)))
        if now >= self._warm_up:
            self._result.tokens += len(verdict.tokens)
            self._result.drafted += verdict.drafted
            self._result.accepted += verdict.accepted
