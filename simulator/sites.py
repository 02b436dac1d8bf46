"""The verifiers of a run: production code around modelled engines, and the choice of one for each generation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from drafter.router import FRESH_SECONDS
from scheduler import SchedulerConfig, routing
from scheduler.identities import Share
from scheduler.step_profile import UNPROFILED
from simulator.baselines import Policy
from simulator.clock import sleep
from simulator.config import Simulation, Tier, VerifierGroup
from simulator.counters import Tally
from simulator.engine import BatchShape, ModelledEngine
from simulator.host import EventLoop, Host
from simulator.links import Link
from simulator.machine import Machine
from simulator.text import VOCABULARY
from simulator.watch import Sink, Watch
from specfleet.core.clock import Clock
from specfleet.core.types import Load, ModelInfo
from specfleet.core.vocabulary import Vocabulary
from verifier.loop import BatchLoop
from verifier.verifier import Limits, Verifier

TABLE = Vocabulary(tuple(f"t{number}" for number in range(VOCABULARY)), ())
DIGEST = TABLE.digest()
CONTEXT = 10_000_000
DRAWN_AT_ONCE = 1024
Process = tuple[Verifier, BatchLoop, ModelledEngine]


class Site:
    """One verifier, and what takes its place after a crash."""

    def __init__(
        self,
        name: str,
        group: str,
        gpus: int,
        watch: Watch,
        make: Callable[[], Process],
        failed: Callable[[asyncio.Task[None]], None],
        event_loop: EventLoop | None = None,
    ) -> None:
        """`make` starts it with nothing in its memory; `failed` is told when its loop ends."""
        self.name = name
        self.group = group
        self.gpus = gpus
        self.watch = watch
        self.event_loop = event_loop
        """Where what messages cost it is modelled."""
        self.up = False
        self.links: dict[Link, None] = {}
        """Calls that it serves, in the order in which they came."""
        self._make = make
        self._failed = failed
        self.start()

    def start(self) -> None:
        self.verifier, self.loop, self.engine = self._make()
        self._task = asyncio.create_task(self.loop.run())
        self._task.add_done_callback(self._failed)
        self.up = True

    def stop(self) -> None:
        self.up = False
        self._task.cancel()

    def crash(self) -> None:
        """Everything that it knew is gone."""
        self.stop()
        for link in list(self.links):
            link.crashed()
        self.links.clear()

    def check_empty(self) -> None:
        """Raises AssertionError if anything is left of any generation."""
        assert self.loop.sessions == 0, f"{self.name} still has {self.loop.sessions} sessions"
        assert self.engine.open_sequences == 0, f"{self.name}'s engine still has {self.engine.open_sequences} sequences"
        assert self.engine.pages.used == 0, f"{self.name} has lost {self.engine.pages.used} pages"


def build(
    config: Simulation,
    policy: Policy,
    seeds: np.random.SeedSequence,
    folder: Path,
    tally: Tally,
    sink: Sink,
    clock: Clock,
    failed: Callable[[asyncio.Task[None]], None],
    hosts: Mapping[str, Host],
) -> list[Site]:
    """All verifiers, running; `failed` is told when one's loop ends. To be called within the event loop."""
    shares = {name: Share(weight=tier.weight) for name, tier in config.tiers.items() if tier.identity == "tier"}
    shares |= {
        f"{name}-{number}": Share(weight=tier.weight)
        for number, (name, tier) in enumerate(drafters(config))
        if tier.identity == "drafter" and tier.weight != 1.0
    }
    sites = []
    for name, group in config.verifiers.items():
        machine, host = group.machine(folder), hosts.get(group.host)
        for number in range(group.count):
            own = f"{name}-{number}" if group.count > 1 else name
            watch = Watch(own, tally, sink, clock)
            daemon = EventLoop(host, config.hosts[group.host].message_seconds) if host is not None else None
            make = _maker(own, group, machine, config, policy, shares, seeds.spawn(1)[0], watch, clock, daemon)
            sites.append(Site(own, name, group.gpus, watch, make, failed, daemon))
    return sites


def drafters(config: Simulation) -> Iterator[tuple[str, Tier]]:
    """Tier name and tier of each drafter, in the order of their numbers."""
    for name, tier in config.tiers.items():
        for _ in range(tier.count):
            yield name, tier


def _maker(
    name: str,
    group: VerifierGroup,
    machine: Machine,
    config: Simulation,
    policy: Policy,
    shares: dict[str, Share],
    seed: np.random.SeedSequence,
    watch: Watch,
    clock: Clock,
    daemon: EventLoop | None,
) -> Callable[[], Process]:
    policy_seed, noise_seed = seed.spawn(2)
    settings = SchedulerConfig(
        speculation=policy.speculation,
        batching=policy.batching,
        max_step_tokens=group.max_step_tokens,
        draft_wait_seconds=group.draft_wait_seconds,
        classes=config.service_classes,
        shares=shares,
        profile=machine.told() if group.profiled else UNPROFILED,
        seed=int(policy_seed.generate_state(1)[0]),
    )
    step_seconds = timed(machine, group.noise, np.random.default_rng(noise_seed))
    pages = max(1, group.kv_tokens // ModelledEngine.page_size)
    limits = Limits(max_sessions=group.max_sessions, kv_tokens=group.kv_tokens, idle_seconds=1e9)
    model = ModelInfo("modelled", VOCABULARY, DIGEST, CONTEXT, (), service_classes=config.service_classes)

    work = sleep if daemon is None else partial(daemon.called, threads=group.threads)

    def make() -> Process:
        engine = ModelledEngine(step_seconds, pages, prefix_cache=group.prefix_cache, work=work)
        loop = BatchLoop(engine, policy.scheduler(settings), clock, watch)
        return Verifier(loop, model, TABLE, {}, limits, name), loop, engine

    return make


def timed(machine: Machine, noise: float, rng: np.random.Generator) -> Callable[[BatchShape], float]:
    """Steps of that machine, each longer or shorter by a normal factor."""
    seconds = machine.seconds
    if not noise:
        return seconds

    def factors() -> Iterator[float]:
        while True:
            yield from np.maximum(0.5, 1.0 + noise * rng.standard_normal(DRAWN_AT_ONCE)).tolist()

    factor = factors()
    return lambda shape: seconds(shape) * next(factor)


class Frontend:
    """Chooses a verifier for each generation as a drafter's router does: by reports that are up to a moment old, to which it
    adds what was opened since. Everybody sees the same reports, and decides alone."""

    def __init__(self, sites: Sequence[Site], policy: str, rng: np.random.Generator, clock: Clock) -> None:
        self._sites = sites
        self._policy = policy
        self._rng = rng
        self._clock = clock
        self._loads: list[Load | None] = []
        self._asked_at = -1.0

    def drafter(self) -> Callable[[], Site]:
        """A drafter's own choice, to be made again for each generation."""
        if len(self._sites) == 1:
            return lambda: self._sites[0]
        policy = routing.build(self._policy, np.random.default_rng(self._rng.integers(2**63)))

        def pick() -> Site:
            self._refresh()
            chosen = policy.choose(self._loads)
            if chosen is None:
                return self._sites[0]  # refuses the connection
            load = self._loads[chosen]
            assert load is not None
            self._loads[chosen] = replace(load, sessions=load.sessions + 1)
            return self._sites[chosen]

        return pick

    def _refresh(self) -> None:
        now = self._clock()
        if self._asked_at < 0.0 or now - self._asked_at >= FRESH_SECONDS:
            self._loads = [site.verifier.load() if site.up else None for site in self._sites]
            self._asked_at = now
