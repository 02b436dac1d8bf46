"""A small world on the virtual clock in which everything fails: verifiers, drafters, users, and faults, all from one seed.

Verifiers and drafters are the production code around fake engines (support.engine); a user is the SDK's stream. What may
fail is simulator.faults: crashes, restarts, drains, cut and slow links, repeated messages; every party has its own clock.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drafter.batcher import DraftBatcher
from drafter.early_stop import EarlyStop
from drafter.resume import Patience
from drafter.router import Router
from drafter.source import Drafter
from drafter.speculators import Speculator
from drafter.speculators.hybrid import Hybrid
from drafter.speculators.model import Model
from drafter.speculators.ngram import Ngram
from scheduler import Scheduler, SchedulerConfig, routing
from simulator.faults import GenerationLink, Host, Link, VerifierLink
from specfleet.client import stream as sdk
from specfleet.core.errors import SpecfleetError
from specfleet.core.generation import GenerationRequest
from specfleet.core.step import StepItem, StepResult
from specfleet.core.types import ModelInfo, SamplingParams
from specfleet.text import TextGenerator
from support.engine import VOCABULARY, FakeEngine, drafter_rule
from support.users import CONTEXT, TABLE, Letters, User, skewed, undisturbed
from verifier.loop import BatchLoop
from verifier.verifier import Limits, TargetOnly, Verifier

POLICIES = (
    *("none", "fixed:1", "fixed:4", "fixed:8", "stream", "stream:3", "random"),
    *("fair-goodput", "fair-goodput:0", "goodspeed:12", "smartspec", "awc", "ladder"),
)
FAULTS_SECONDS = 12.0
"""Everything that breaks does so within; it is mended some time after."""
LIMIT_SECONDS = 600.0
"""By then everybody has got everything, or something hangs."""


class Engine(FakeEngine):
    """Steps last a while, more or less."""

    def __init__(self, rng: np.random.Generator, seconds: float, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self._rng, self._seconds = rng, seconds

    async def step(self, items: Sequence[StepItem]) -> list[StepResult]:
        self.delay = self._seconds * float(self._rng.uniform(0.5, 1.5))
        self.steps.clear()
        return await super().step(items)


class VerifierNode:
    """A verifier process that can be started again: all it knew is gone then."""

    def __init__(self, name: str, rng: np.random.Generator, world: Settings) -> None:
        self.host = Host(name)
        self._rng, self._world = rng, world
        self.start()

    def start(self) -> None:
        world, rng = self._world, self._rng
        clock = skewed(rng)
        ends = world.ends
        self.engine = Engine(rng, world.step_seconds, pages=world.pages, context=CONTEXT)
        self.scheduler = Scheduler(
            SchedulerConfig(
                speculation=world.policy,
                draft_wait_seconds=world.draft_wait_seconds,
                max_step_tokens=world.max_step_tokens,
                seed=int(rng.integers(2**31)),
            )
        )
        self.loop = BatchLoop(self.engine, self.scheduler, clock)
        model = ModelInfo("fake", VOCABULARY, TABLE.digest(), CONTEXT, ends)
        limits = Limits(kv_tokens=world.pages * self.engine.page_size, max_sessions=world.max_sessions)
        self.verifier = Verifier(self.loop, model, TABLE, {}, limits, self.host.name)
        self.generator = TextGenerator(TargetOnly(self.verifier, lambda: "direct"), Letters())  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.loop.run())
        self.host.up = True

    def crash(self) -> None:
        self.host.crash()
        self.task.cancel()

    async def drain(self, seconds: float) -> None:
        await self.host.drain(seconds)
        self.task.cancel()

    def check(self) -> None:
        """Nothing is held any more."""
        assert not self.host.bugs, self.host.bugs
        if not self.host.up:
            return
        assert not self.task.done(), "the batch loop ended"
        assert 0 == self.loop.sessions, f"{self.host.name} holds {self.loop.sessions} sessions"
        assert {} == self.engine.texts, f"{self.host.name} holds pages"
        assert 0 == len(self.scheduler), f"{self.host.name} schedules what is gone"


class DrafterNode:
    """A drafter process likewise. Like the daemon it needs a verifier to start, and is started until it has one."""

    def __init__(self, name: str, rng: np.random.Generator, world: Settings, verifiers: Sequence[VerifierNode]) -> None:
        self.host = Host(name)
        self.links = [Link(rng, world.delay) for _ in verifiers]
        self._rng, self._world, self._verifiers = rng, world, verifiers
        self._starting: asyncio.Task[None] | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.start()

    def start(self) -> None:
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start())

    async def _start(self) -> None:
        rng, world = self._rng, self._world
        clock = skewed(rng)
        while True:
            connections = [
                VerifierLink(node.host, link, lambda node=node: node.verifier, self.host.name)  # type: ignore[misc]
                for node, link in zip(self._verifiers, self.links, strict=True)
            ]
            router = Router(connections, routing.build(world.routing, rng), clock)
            try:
                await router.reach(5.0)
                await router.agree(TABLE)
                break
            except SpecfleetError:
                await asyncio.sleep(0.5)
        self.engine = Engine(rng, world.draft_seconds, rule=drafter_rule(world.rightness), pages=world.draft_pages)
        batcher = DraftBatcher(self.engine, runners_up=True)
        self.tasks = [asyncio.create_task(batcher.run())]
        model = Model(batcher, CONTEXT)
        speculators: dict[str, Speculator] = {"model": model, "ngram": Ngram(), "hybrid": Hybrid(model)}
        speculator = speculators[world.speculator]
        early = EarlyStop() if world.early_stop else None
        patience = Patience(open=float(rng.choice([0.0, 10.0])), resume=float(rng.choice([0.5, 60.0])))
        drafter = Drafter(router, speculator, TABLE, clock, patience=patience, rng=rng, ahead=world.ahead, early=early)
        self.generator = TextGenerator(drafter, Letters(), drafter=self.host.name)  # type: ignore[arg-type]
        self.host.up = True

    def crash(self) -> None:
        self.host.crash()
        for task in self.tasks:
            task.cancel()
        if self._starting is not None:
            self._starting.cancel()

    async def drain(self, seconds: float) -> None:
        await self.host.drain(seconds)
        self.crash()

    def check(self) -> None:
        assert not self.host.bugs, self.host.bugs
        if self.host.up:
            assert not any(task.done() for task in self.tasks), "the draft batcher ended"
            assert {} == self.engine.texts, f"{self.host.name} holds pages of the draft model"


@dataclass(frozen=True)
class Settings:
    """What stays the same in one world."""

    policy: str
    routing: str
    ends: tuple[int, ...]
    verifiers: int
    drafters: int
    users: int
    rightness: int
    speculator: str
    ahead: bool
    early_stop: bool
    pages: int
    draft_pages: int
    max_sessions: int
    max_step_tokens: int
    step_seconds: float
    draft_seconds: float
    draft_wait_seconds: float
    delay: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Settings:
        def one(*of: object) -> object:
            return of[int(rng.integers(len(of)))]

        return cls(  # type: ignore[call-overload]
            policy=str(one(*POLICIES)),
            routing=str(one(*routing.POLICIES)),
            ends=tuple(int(end) for end in rng.integers(VOCABULARY, size=int(rng.integers(0, 3)))),
            verifiers=int(rng.integers(1, 4)),
            drafters=int(rng.integers(1, 4)),
            users=int(rng.integers(3, 11)),
            rightness=int(rng.integers(0, 11)),
            speculator=str(one(*["model"] * 5, "ngram", "hybrid")),
            ahead=bool(rng.random() < 0.75),
            early_stop=bool(rng.random() < 0.75),
            pages=int(one(1000, 1000, 30, 16)),  # type: ignore[call-overload]
            draft_pages=int(one(1000, 1000, 20)),  # type: ignore[call-overload]
            max_sessions=int(one(100, 100, 4, 2)),  # type: ignore[call-overload]
            max_step_tokens=int(one(256, 40)),  # type: ignore[call-overload]
            step_seconds=float(one(0.005, 0.03, 0.15)),  # type: ignore[arg-type]
            draft_seconds=float(one(0.001, 0.005, 0.05)),  # type: ignore[arg-type]
            draft_wait_seconds=float(one(0.05, 0.5, 5.0)),  # type: ignore[arg-type]
            delay=float(one(0.0005, 0.01, 0.1)),  # type: ignore[arg-type]
        )


class World:
    """One schedule, from one seed."""

    def __init__(self, seed: int) -> None:
        seeds = np.random.SeedSequence(seed)
        self.rng, own = (np.random.default_rng(one) for one in seeds.spawn(2))
        self.settings = Settings.draw(self.rng)
        self.log: list[str] = [f"seed {seed}: {self.settings}"]
        self.verifiers = [
            VerifierNode(f"verifier-{n}", _child(own), self.settings) for n in range(self.settings.verifiers)
        ]
        self.drafters = [
            DrafterNode(f"drafter-{n}", _child(own), self.settings, self.verifiers)
            for n in range(self.settings.drafters)
        ]
        self.users = [self._user(number) for number in range(self.settings.users)]
        self.user_links = [[Link(_child(own), self.settings.delay) for _ in range(8)] for _ in self.users]
        self._user_rngs = [_child(own) for _ in self.users]

    def _user(self, number: int) -> User:
        rng = self.rng
        kind = int(rng.integers(3))
        sampling = SamplingParams(
            max_tokens=int(rng.integers(1, 120)),
            temperature=0.0 if kind == 0 else 1.0,
            seed=number if kind == 1 else None,
            stop=("é", "a b") if rng.random() < 0.1 else ("zz",) if rng.random() < 0.3 else (),
            ignore_eos=bool(rng.random() < 0.7),
        )
        prompt = tuple(int(token) for token in rng.integers(VOCABULARY, size=int(rng.integers(1, 100))))
        request = GenerationRequest(sampling=sampling, prompt_token_ids=prompt, request_id=f"user-{number}")
        leaves = int(rng.integers(0, 60)) if rng.random() < 0.2 else None
        return User(request, float(rng.uniform(0.0, 6.0)), leaves)

    def servers(self, number: int) -> list[sdk.Server]:
        """Some drafters, perhaps a verifier as the last resort, in any order."""
        rng, links = self._user_rngs[number], self.user_links[number]
        nodes: list[VerifierNode | DrafterNode] = [*self.drafters]
        if rng.random() < 0.5:
            nodes.append(self.verifiers[0])
        count = int(rng.integers(1, len(nodes) + 1))
        chosen = [nodes[int(index)] for index in rng.permutation(len(nodes))[:count]]
        return [
            GenerationLink(node.host, links[nodes.index(node)], lambda node=node: node.generator)  # type: ignore[misc]
            for node in chosen
        ]

    async def run(self) -> None:
        """Until everybody has got everything. Raises AssertionError where somebody has not, or something is held."""
        loop = asyncio.get_running_loop()
        faults = [asyncio.create_task(self._fault(*fault)) for fault in self._schedule()]
        users = [
            asyncio.create_task(user.run(lambda number=number: self.servers(number), self._user_rngs[number]))  # type: ignore[misc]
            for number, user in enumerate(self.users)
        ]
        done, hanging = await asyncio.wait(users, timeout=LIMIT_SECONDS)
        for task in itertools.chain(done, faults):
            if task.done():
                task.result()
        stuck = [user.request.request_id for user, task in zip(self.users, users, strict=True) if task in hanging]
        assert not stuck, f"{stuck} hang at {loop.time():g} s"
        await asyncio.gather(*faults)
        for user in self.users:
            user.check(*await undisturbed(user.request, self.settings.ends))
            self.log.append(
                f"{user.done_at!r} {user.request.request_id}: {len(user.ids)} tokens, {user.resumes} resumes"
            )
        await asyncio.sleep(60.0)  # the last cancellation has arrived, the last keepalive has fired
        for node in (*self.verifiers, *self.drafters):
            node.check()

    # --- faults ----------------------------------------------------------------------------------------------------

    def _schedule(self) -> list[tuple[float, str, int, float]]:
        """(when, what, to whom, for how long)."""
        rng = self.rng
        kinds = ("crash", "crash", "drain", "cut", "slow", "repeat", "drafter", "drafter-drain", "user-cut")
        count = int(rng.integers(0, 25))
        return [
            (
                float(rng.uniform(0.0, FAULTS_SECONDS)),
                kinds[int(rng.integers(len(kinds)))],
                int(rng.integers(1000)),
                float(rng.choice([0.1, 0.5, 2.0, 5.0, 30.0]) * rng.uniform(0.5, 1.5)),
            )
            for _ in range(count)
        ]

    async def _fault(self, at: float, kind: str, number: int, seconds: float) -> None:
        await asyncio.sleep(at)
        verifier = self.verifiers[number % len(self.verifiers)]
        drafter = self.drafters[number % len(self.drafters)]
        links = drafter.links if kind != "user-cut" else self.user_links[number % len(self.users)]
        link = links[(number // 7) % len(links)]
        self.log.append(f"{at:8.3f} {kind} {verifier.host.name}/{drafter.host.name} for {seconds:.3f} s")
        match kind:
            case "crash" | "drain" | "drafter" | "drafter-drain":
                node = drafter if kind.startswith("drafter") else verifier
                if not node.host.up or node.host.draining:
                    return
                if kind.endswith("drain"):
                    await node.drain(min(seconds, 5.0))
                else:
                    node.crash()
                await asyncio.sleep(seconds)
                node.start()
            case "cut" | "user-cut":
                link.cut()
                await asyncio.sleep(seconds)
                link.mend()
            case "slow":
                link.slow = float(self.rng.uniform(0.05, 1.0))
                await asyncio.sleep(seconds)
                link.slow = 0.0
            case "repeat":
                link.repeats = 0.5
                await asyncio.sleep(seconds)
                link.repeats = 0.0


def _child(parent: np.random.Generator) -> np.random.Generator:
    return np.random.default_rng(int(parent.integers(2**63)))
