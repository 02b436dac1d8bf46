"""A drafter and its users: requests become drafting sessions as in production, and everything they see is counted."""

from __future__ import annotations

import asyncio
import bisect
import random
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

import numpy as np

from drafter.early_stop import EarlyStop
from drafter.observer import Silent
from drafter.pace import Pace
from drafter.resume import LOST, Generation, Patience
from drafter.session import DraftingSession
from scheduler.draft_time import DraftProfile
from simulator.config import Availability, Tier
from simulator.counters import Row, Tally
from simulator.faults import KEEPALIVE_SECONDS
from simulator.host import EventLoop, Host
from simulator.links import Link, Way
from simulator.recorded import Recorded, Text
from simulator.sites import Site
from simulator.speculator import ModelledDrafting, ModelledSpeculator
from simulator.text import Truth
from simulator.watch import Sink
from simulator.workload import Request
from specfleet.core.clock import Clock
from specfleet.core.errors import SpecfleetError
from specfleet.core.protocol import Finished, Open, Opened, Verdict
from specfleet.core.types import SamplingParams

Pick = Callable[[], Site]
PATIENCE, SILENT = Patience(), Silent()


class Presence:
    """When a drafter's user is there."""

    def __init__(self, availability: Availability | None, rng: random.Random) -> None:
        self._windows = sorted(availability.windows) if availability else []
        self._on = (availability.on or 0.0) if availability else 0.0
        self._cycle = self._on + (availability.off or 0.0) if availability else 0.0
        self._phase = rng.uniform(0.0, self._cycle) if self._cycle else 0.0

    def wait(self, now: float) -> float | None:
        """Seconds until it is; None for never again."""
        if self._cycle:
            into = (now + self._phase) % self._cycle
            return 0.0 if into < self._on else self._cycle - into
        if not self._windows:
            return 0.0
        return next((max(0.0, start - now) for start, end in self._windows if now < end), None)


class Drift:
    """A drafter's acceptance over time."""

    def __init__(self, tier: Tier, rng: random.Random) -> None:
        self.base = tier.acceptance.draw(rng)
        self._times = [time for time, _ in tier.drift]
        self._changes = [change for _, change in tier.drift]

    @property
    def of_time(self) -> Callable[[float], float] | float:
        return self if self._times else float(self.base)

    def __call__(self, now: float) -> float:
        if not self._times:
            return self.base
        at = bisect.bisect_right(self._times, now)
        if at in (0, len(self._times)):
            return self._clip(self._changes[max(0, at - 1)])
        start, end = self._times[at - 1 : at + 1]
        before, after = self._changes[at - 1 : at + 1]
        return self._clip(before + (after - before) * (now - start) / (end - start))

    def _clip(self, change: float) -> float:
        return min(1.0, max(0.0, self.base + change))


def _heard() -> None:
    """A user's program has read what came."""


def profile(tier: Tier) -> DraftProfile | None:
    """How fast it drafts several texts at a time, if it can."""
    batches = dict(sorted(tier.together.items()))
    return DraftProfile(tuple(batches), tuple(batches.values())) if batches else None


class Device:
    """One drafter machine; its generations share its processor and its access to the network."""

    def __init__(
        self,
        number: int,
        name: str,
        tier: Tier,
        rng: random.Random,
        *,
        drafts: bool,
        ahead: bool,
        texts: list[Text] | None,
        shared: bool,
        window: tuple[float, float],
        tally: Tally,
        sink: Sink,
        clock: Clock,
        digest: bytes,
        faulty: bool = False,
        host: Host | None = None,
        message_seconds: float = 0.0,
    ) -> None:
        """`drafts`: whether anybody does under this policy; `ahead`: of a verdict, too. `texts`: where its guesses are right,
        if that was recorded. `shared`: it may have more than one generation at a time. `window`: the seconds of the run that
        count. `faulty`: verifiers may be lost, for good, too. `host`: the machine that it shares with others, where a message
        takes `message_seconds`."""
        network = tier.network
        half = network.round_trip.draw(rng) / 2.0
        up = network.up.draw(rng) if network.up is not None else half
        down = network.down.draw(rng) if network.down is not None else half
        self.number = number
        self.tier = name
        self.identity = name if tier.identity == "tier" else f"{name}-{number}"
        self.service_class = tier.service_class
        self.presence = Presence(tier.availability, rng)
        self.up = Way(up, network.jitter, network.bandwidth_up, random.Random(rng.getrandbits(64)))
        self.down = Way(down, network.jitter, network.bandwidth_down, random.Random(rng.getrandbits(64)))
        self._daemon = EventLoop(host, message_seconds) if host is not None else None
        self._users = EventLoop(host, message_seconds) if host is not None else None
        """Their programs, which are told of every verdict."""
        self.speculator = ModelledSpeculator(
            Drift(tier, rng).of_time,
            tier.draft_seconds.draw(rng),
            random.Random(rng.getrandbits(64)),
            shared=shared,
            cold_start=tier.cold_start,
            together=profile(tier),
            confidence=tier.confidence,
            daemon=self._daemon,
            threads=tier.threads,
        )
        self.tokens = 0
        """Delivered in the window."""
        self.busy = 0.0
        """Seconds of the window with a request under way."""
        self._can_draft = drafts and tier.can_draft
        self._ahead = ahead and tier.ahead
        self._texts = texts
        self._choice = random.Random(rng.getrandbits(64)) if texts else rng
        self._early = EarlyStop() if tier.confidence is not None else None
        self._window = window
        self._tally = tally
        self._sink = sink
        self._clock = clock
        self._digest = digest
        self._faulty = faulty
        self._pace = Pace()
        self._pauses = np.random.default_rng(rng.getrandbits(64))
        self._links: dict[Link, None] = {}
        self._active = 0
        self._since = 0.0

    async def serve(self, request: Request, prompt: tuple[int, ...], pick: Pick, retries: int, issued: float) -> Row:
        """One request from its beginning to its one end."""
        row = Row(
            request.number,
            self.number,
            self.tier,
            self.service_class or request.service_class,
            "",
            request.prompt_tokens,
            request.output_tokens,
            issued,
        )
        self._begin()
        self._sink.event(self._clock(), "issued", row)
        try:
            while not await self._attempt(row, prompt, pick, retries):
                pass
        except asyncio.CancelledError:
            row.outcome = "unfinished"
            self._ended(row)
            raise  # else whoever asks again and again would go on asking
        finally:
            self._end()
        self._ended(row)
        return row

    def _ended(self, row: Row) -> None:
        self._tally.stale += row.stale
        self._tally.discarded += row.discarded
        self._sink.event(self._clock(), row.outcome, row)
        self._sink.request(row)

    def cut(self, seconds: float) -> None:
        """Its access is cut for so long; calls that it has now break when a keepalive finds out before that."""
        until = self._clock() + seconds
        self.up.hold(until)
        self.down.hold(until)
        patience = self._pauses.uniform(*KEEPALIVE_SECONDS)
        if patience < seconds:
            asyncio.get_running_loop().call_later(patience, self._break, list(self._links))

    def slow(self, seconds: float) -> None:
        """Messages take so much longer each way from now on; negative to undo it."""
        self.up.slow(seconds)
        self.down.slow(seconds)

    def _break(self, links: list[Link]) -> None:
        for link in links:
            if link in self._links:
                link.broken()

    async def _attempt(self, row: Row, prompt: tuple[int, ...], pick: Pick, retries: int) -> bool:
        """Whether it has ended, one way or another."""
        try:
            await self._generate(row, prompt, pick)
        except SpecfleetError as error:
            if self._faulty and isinstance(error, LOST):
                row.outcome = "lost"
                return True
            if error.retry_after is None:
                raise
            row.refusals += 1
            self._sink.event(self._clock(), "turned away", row)
            await asyncio.sleep(error.retry_after)
            if row.refusals <= retries:
                return False
            row.outcome = "refused"
            return True
        assert row.tokens == row.output_tokens, f"{row.tokens} tokens were delivered: {row}"
        row.outcome = "finished"
        return True

    async def _generate(self, row: Row, prompt: tuple[int, ...], pick: Pick) -> None:
        """As drafter.source does: sessions one after the other, until one finishes the text."""
        opening = Open(
            prompt=prompt,
            sampling=SamplingParams(max_tokens=row.output_tokens, temperature=0.0),
            service_class=row.service_class,
            vocabulary_digest=self._digest,
            can_draft=self._can_draft,
        )
        truth = Truth(prompt)
        recorded = Recorded(self._texts, self._choice) if self._texts else None
        drafting = ModelledDrafting(self.speculator, truth, recorded)
        links: list[Link] = []

        def session(opening: Open) -> DraftingSession:
            site, pace = pick(), self._pace
            row.verifier = site.name
            link = Link(site, self.identity, self.up, self.down, self._daemon)
            self._drop(links[-1:])
            links.append(link)
            self._links[link] = None
            opening = replace(
                opening,
                draft_seconds_per_token=pace.told_draft_seconds(self._clock()),
                round_trip_seconds=pace.round_trip.value,
            )
            return DraftingSession(
                opening, link, drafting, self._clock, pace=pace, ahead=self._ahead, early=self._early
            )

        generation = Generation(opening, session, PATIENCE, self._clock, self._pauses, SILENT)
        opened = 0
        try:
            async with aclosing(generation.run()) as messages:
                async for message in messages:
                    if isinstance(message, Verdict):
                        self._delivered(row, message, truth)
                    elif isinstance(message, Opened):
                        row.cached = row.cached if opened else message.cached_tokens
                        opened += 1
                    elif isinstance(message, Finished):
                        assert message.usage.completion_tokens == row.tokens, f"tokens were lost: {row}"
        finally:
            self._drop(links[-1:])
            row.resumes += max(0, opened - 1)
            row.settle(drafting.drafted, sum(link.sent for link in links))

    def _drop(self, links: list[Link]) -> None:
        for link in links:
            self._links.pop(link, None)

    def _delivered(self, row: Row, verdict: Verdict, truth: Truth) -> None:
        now, tally, tokens = self._clock(), self._tally, verdict.tokens
        count, end = len(tokens), verdict.position + len(tokens)
        assert list(tokens) == truth.between(end - count, end), "the text is not the target's own"
        assert end == row.prompt_tokens + row.tokens + count, "tokens were lost or told twice"
        if row.first is None:
            row.first = now
            self._sink.event(now, "first token", row)
        row.last = now
        row.tokens += count
        row.verdicts += 1
        tally.verdicts += 1
        tally.tokens += count
        if verdict.drafted:
            row.rounds += 1
            row.verified += verdict.drafted
            row.accepted += verdict.accepted
            tally.rounds += 1
            tally.verified += verdict.drafted
            tally.accepted += verdict.accepted
            tally.runs[verdict.accepted] += 1
            tally.lengths[verdict.drafted] += 1
        if self._window[0] <= now <= self._window[1]:
            self.tokens += count
        self._sink.round(now, row, verdict)
        if self._daemon is not None and self._users is not None:
            self._daemon.handle(self._users.handle, _heard)

    def _begin(self) -> None:
        if not self._active:
            self._since = self._clock()
        self._active += 1

    def _end(self) -> None:
        self._active -= 1
        if not self._active:
            start, end = max(self._since, self._window[0]), min(self._clock(), self._window[1])
            self.busy += max(0.0, end - start)

    @property
    def speed(self) -> float | None:
        """Tokens per second of the window while it had a request under way; None where it had none."""
        return self.tokens / self.busy if self.busy > 0.0 else None
