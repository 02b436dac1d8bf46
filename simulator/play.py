"""One run: a policy and a seed on a configured fleet, from the first request to the last one's end."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulator import clock
from simulator.baselines import Policy
from simulator.clock import VirtualLoop
from simulator.config import Simulation
from simulator.counters import Row, Tally
from simulator.device import Device
from simulator.host import Host
from simulator.outages import outage
from simulator.recorded import read_acceptance
from simulator.sites import DIGEST, Frontend, Site, build, drafters
from simulator.watch import Both, Nowhere, Sink
from simulator.workload import Request, Requests, arrivals
from specfleet.bench.traces import Row as TraceRow
from specfleet.bench.traces import read_trace

SETTLE_SECONDS = 60.0
"""After the last request's end: what is still on its way arrives, and verifiers let go of what they hold."""
LOOKS = 200
"""How often a run says how far it is."""

Progress = Callable[[float, int], None]
"""Told the share of the run that is done, and the events so far."""


@dataclass(frozen=True, slots=True)
class Played:
    """What a run gave."""

    config: Simulation
    policy: Policy
    seed: int
    rows: list[Row]
    """Of every request, in the order in which they ended."""
    window: Tally
    """Between warm-up and duration."""
    total: Tally
    """Of the whole run, drain included."""
    speeds: list[float]
    """Tokens per second of each drafter that had a request in the window, while it had one."""
    gpus: int
    verifiers: int
    not_issued: int
    """Rows of the trace that come after the end."""
    ended: float
    """When the last request did."""
    events: int

    @property
    def seconds(self) -> float:
        """Of the window."""
        return self.config.duration - self.config.warm_up


class _Collect(Nowhere):
    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def request(self, row: Row) -> None:
        self._rows.append(row)


def play(
    config: Simulation,
    policy: Policy,
    seed: int,
    *,
    folder: Path = Path(),
    sinks: Sequence[Sink] = (),
    progress: Progress | None = None,
) -> Played:
    """Run it. A function of its arguments; `folder` is where the configuration's files are looked for.

    Raises:
        ConfigurationError: a trace or profile cannot be read.
        AssertionError: a text is not the target's own, or something does not add up.
    """
    trace = _trace(config, folder)
    with _no_collections():
        return clock.run(_Run(config, policy, seed, folder, sinks, progress, trace).play())


def _trace(config: Simulation, folder: Path) -> list[TraceRow]:
    found = config.workload.trace
    return read_trace(folder / found.file, found.limit) if found is not None else []


@contextmanager
def _no_collections() -> Iterator[None]:
    """Rounds leave no cycles behind, and requests a handful of objects: looking through all sessions for them again and again
    would take a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Run:
    def __init__(
        self,
        config: Simulation,
        policy: Policy,
        seed: int,
        folder: Path,
        sinks: Sequence[Sink],
        progress: Progress | None,
        trace: list[TraceRow],
    ) -> None:
        self._config = config
        self._policy = policy
        self._seed = seed
        self._folder = folder
        self._progress = progress
        self._trace = trace
        self._tally = Tally()
        self._rows: list[Row] = []
        self._sink = Both((_Collect(self._rows), *sinks))
        self._tasks: set[asyncio.Task[Any]] = set()
        self._issued = 0
        self._failure: asyncio.Future[None]
        """Set by whatever goes wrong anywhere."""
        self._ended: asyncio.Future[None]
        """Set when the last request has ended, and nobody will issue another."""

    async def play(self) -> Played:
        config, loop = self._config, asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self._failure, self._ended = loop.create_future(), loop.create_future()
        verifiers, fleet, routes, work, due = np.random.SeedSequence(self._seed).spawn(5)
        hosts = {name: Host(one.processors) for name, one in config.hosts.items()}
        sites = build(
            config, self._policy, verifiers, self._folder, self._tally, self._sink, loop.time, self._failed, hosts
        )
        devices = self._devices(fleet, hosts)
        frontend = Frontend(sites, config.routing, np.random.default_rng(routes), loop.time)
        self._requests = Requests(config.workload, _random(work))
        self._issue(devices, frontend, _random(due))
        outages = [asyncio.create_task(outage(fault, sites, devices)) for fault in config.faults]
        for task in outages:
            task.add_done_callback(self._failed)
        looks = asyncio.create_task(self._look(loop)) if self._progress else None
        begin, end = await self._windows(devices)
        ended = loop.time()
        await self._settled(sites)
        if looks is not None:
            looks.cancel()
        for task in outages:
            task.cancel()
        for site in sites:
            site.stop()
        self._check(sites, devices)
        return Played(
            config,
            self._policy,
            self._seed,
            self._rows,
            end.less(begin),
            self._snapshot(devices),
            [device.speed for device in devices if device.speed is not None],
            sum(site.gpus for site in sites),
            len(sites),
            sum(row.at / config.workload.trace.speed >= config.duration for row in self._trace)
            if config.workload.trace
            else 0,
            ended,
            loop.events,
        )

    def _devices(self, seeds: np.random.SeedSequence, hosts: dict[str, Host]) -> list[Device]:
        config, clock_ = self._config, asyncio.get_running_loop().time
        closed = config.workload.closed_loop is not None
        named = {tier.acceptance_trace for tier in config.tiers.values() if tier.acceptance_trace}
        texts = {name: read_acceptance(self._folder / name) for name in sorted(named)}
        return [
            Device(
                number,
                name,
                tier,
                _random(own),
                drafts=self._policy.drafters,
                ahead=self._policy.ahead,
                texts=texts.get(tier.acceptance_trace or ""),
                shared=not closed or tier.streams > 1,
                window=(config.warm_up, config.duration),
                tally=self._tally,
                sink=self._sink,
                clock=clock_,
                digest=DIGEST,
                faulty=bool(config.faults),
                host=hosts.get(tier.host),
                message_seconds=config.hosts[tier.host].message_seconds if tier.host else 0.0,
            )
            for number, ((name, tier), own) in enumerate(
                zip(drafters(config), seeds.spawn(config.drafters), strict=True)
            )
        ]

    # --- who asks ----------------------------------------------------------------------------------------------------

    def _issue(self, devices: list[Device], frontend: Frontend, rng: random.Random) -> None:
        """Set everybody going."""
        picks = {device.number: frontend.drafter() for device in devices}
        if self._config.workload.closed_loop is None:
            self._start(self._open_loop(devices, picks, rng))
            return
        tiers = self._config.tiers
        for device in devices:
            for _ in range(tiers[device.tier].streams):
                self._start(self._closed_loop(device, picks[device.number], random.Random(rng.getrandbits(64))))

    async def _closed_loop(self, device: Device, pick: Callable[[], Site], rng: random.Random) -> None:
        closed, tier = self._config.workload.closed_loop, self._config.tiers[device.tier]
        assert closed is not None
        now = asyncio.get_running_loop().time
        while True:
            think = closed.think_seconds.draw(rng)
            if think:
                await asyncio.sleep(think)
            away = device.presence.wait(now())
            while away:
                await asyncio.sleep(away)
                away = device.presence.wait(now())
            if away is None or now() >= self._config.duration or self._issued == closed.requests:
                return
            await self._serve(device, pick, self._requests.next(now(), tier=tier), now())

    async def _open_loop(self, devices: list[Device], picks: dict[int, Callable[[], Site]], rng: random.Random) -> None:
        """Requests when they are due, each to a drafter that is there, or to any where nobody is."""
        now = asyncio.get_running_loop().time
        workload, tiers = self._config.workload, self._config.tiers
        rows = iter(self._trace)
        for at in arrivals(workload, rng, self._config.duration, self._trace):
            await asyncio.sleep(at - now())
            here = [device for device in devices if device.presence.wait(at) == 0.0] or devices
            device = rng.choice(here)
            request = self._requests.next(at, next(rows, None), tiers[device.tier])
            self._start(self._serve(device, picks[device.number], request, at))

    def _serve(self, device: Device, pick: Callable[[], Site], request: Request, at: float) -> Coroutine[Any, Any, Row]:
        self._issued += 1
        prompt = self._requests.prompt(request)
        return device.serve(request, prompt, pick, self._config.workload.retries, at)

    def _start(self, what: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._failed(task)
        if not self._tasks and not self._ended.done():
            self._ended.set_result(None)

    def _failed(self, task: asyncio.Task[Any]) -> None:
        """A bug anywhere ends the run."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._failure.done():
            self._failure.set_exception(error)

    # --- the run -----------------------------------------------------------------------------------------------------

    async def _windows(self, devices: list[Device]) -> tuple[Tally, Tally]:
        """Wait for the window's beginning and end, and for the last request. Returns the sums at both."""
        config = self._config
        await self._until(config.warm_up)
        begin = self._snapshot(devices)
        await self._until(config.duration)
        end = self._snapshot(devices)
        if self._tasks:
            patience = max(0.0, config.duration + config.drain - asyncio.get_running_loop().time())
            await asyncio.wait({self._ended, self._failure}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            self._raise()
        left = list(self._tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        self._raise()
        return begin, end

    async def _until(self, moment: float) -> None:
        seconds = moment - asyncio.get_running_loop().time()
        if seconds > 0.0:
            await asyncio.wait({self._failure}, timeout=seconds)
        self._raise()

    def _raise(self) -> None:
        if self._failure.done():
            self._failure.result()

    async def _settled(self, sites: list[Site]) -> None:
        end = asyncio.get_running_loop().time() + SETTLE_SECONDS
        while any(site.loop.sessions for site in sites) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.1)
            self._raise()

    def _snapshot(self, devices: list[Device]) -> Tally:
        copy = self._tally.copy()
        copy.drafting_seconds = sum(device.speculator.seconds for device in devices)
        copy.bytes_up = sum(device.up.bytes for device in devices)
        copy.bytes_down = sum(device.down.bytes for device in devices)
        return copy

    async def _look(self, loop: VirtualLoop) -> None:
        assert self._progress is not None
        while True:
            self._progress(min(1.0, loop.time() / self._config.duration), loop.events)
            await asyncio.sleep(self._config.duration / LOOKS)

    def _check(self, sites: list[Site], devices: list[Device]) -> None:
        """Everything that was begun has ended once, and every token is accounted for. Raises AssertionError."""
        rows, tally = self._rows, self._tally
        for site in sites:
            site.check_empty()
        assert len(rows) == self._issued, f"{self._issued} requests were issued, {len(rows)} ended"
        assert len({row.request for row in rows}) == len(rows), "a request ended twice"
        assert all(row.outcome for row in rows), "a request ended without an outcome"
        drafted = sum(row.drafted for row in rows)
        accounted = tally.accepted + sum(row.refused for row in rows) + tally.stale + tally.discarded
        assert drafted == accounted, f"{drafted} tokens were drafted, {accounted} are accounted for"
        # What a verifier says as it crashes, or to who is cut off, is counted there and arrives nowhere.
        if all(row.outcome == "finished" and not row.resumes for row in rows):
            for told, counted in (("committed", "tokens"), ("verified", "verified"), ("accepted", "accepted")):
                theirs, ours = sum(getattr(site.watch, told) for site in sites), getattr(tally, counted)
                assert theirs == ours, f"verifiers {told} {theirs} tokens, their drafters were told of {ours}"


def _random(seeds: np.random.SeedSequence) -> random.Random:
    """A generator of its own, from a branch of the run's seed."""
    return random.Random(int.from_bytes(seeds.generate_state(4).tobytes(), "little"))
