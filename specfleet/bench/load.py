"""Requests through the SDK, as many at a time as there are lanes, and what their clients saw.

Closed loop: each lane sends its next request when its last one is done. Open loop: each request has a moment at which it is
due, and its times count from then, so that a fleet (or a lane) that falls behind cannot hide it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from specfleet.client import AsyncClient, AsyncStream
from specfleet.core.errors import SpecfleetError
from specfleet.core.types import FinishReason, SamplingParams, Speculation


@dataclass(frozen=True, slots=True)
class Request:
    """One request to be sent."""

    prompt: str
    sampling: SamplingParams
    service_class: str = ""
    due: float | None = None
    """Seconds after the start of the run; None: as soon as a lane is free."""
    target_only: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    requests: tuple[Request, ...]
    lanes: int
    """Most requests at a time."""
    closed: bool
    """Streams, over which fairness is measured, are lanes (closed loop), or else single requests."""

    @property
    def streams(self) -> int:
        return min(self.lanes, len(self.requests)) if self.closed else len(self.requests)


@dataclass(frozen=True, slots=True)
class Arrival:
    """Tokens that came together: those of one verdict."""

    at: float
    """Seconds after the start of the run."""
    tokens: int
    accepted: int = 0
    """How many of them were drafted and accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One request as its client saw it. Times are seconds after the start of the run.

    It finished, or `error` says why it failed, or else the run was interrupted while it was under way.
    """

    stream: int
    begun: float
    """Sent, or due where it had a moment to be sent at."""
    ended: float
    finished: bool
    service_class: str = ""
    arrivals: tuple[Arrival, ...] = ()
    error: SpecfleetError | None = None
    speculation: Speculation = field(default_factory=Speculation)
    """Empty unless it finished."""
    policy: str = ""

    @property
    def tokens(self) -> int:
        return sum(arrival.tokens for arrival in self.arrivals)

    @property
    def busy(self) -> float:
        return self.ended - self.begun

    @property
    def ttft(self) -> float:
        """Seconds to the first token; all the time there was, where none came."""
        return (self.arrivals[0].at if self.arrivals else self.ended) - self.begun

    @property
    def e2e(self) -> float:
        """Seconds to the last token; all the time there was, where none came."""
        return (self.arrivals[-1].at if self.arrivals else self.ended) - self.begun

    @property
    def tpot(self) -> float:
        """Seconds per token after the first: (e2e - ttft) / (n - 1); 0 for fewer than two."""
        return (self.e2e - self.ttft) / (self.tokens - 1) if self.tokens > 1 else 0.0


class Load:
    """Carries a plan out. `records` grows while it runs, and is complete for what was begun also when it is cancelled."""

    def __init__(self, plan: Plan, clients: Sequence[AsyncClient], done: Callable[[], None] = lambda: None) -> None:
        """Stream i goes to client i modulo their number. `done` is called after each request."""
        self.records: list[Record] = []
        self._plan = plan
        self._clients = clients
        self._done = done
        self.start = 0.0
        """`time.perf_counter` when the run began."""

    async def run(self) -> None:
        """Until every request has finished or failed; no failure of a request is raised."""
        self.start = time.perf_counter()
        waiting = iter(enumerate(self._plan.requests))
        async with asyncio.TaskGroup() as lanes:
            for lane in range(min(self._plan.lanes, len(self._plan.requests))):
                lanes.create_task(self._lane(lane, waiting))

    async def _lane(self, lane: int, waiting: Iterator[tuple[int, Request]]) -> None:
        for number, request in waiting:
            if request.due is not None:
                await asyncio.sleep(max(0.0, request.due - self._now()))
            await self._ask(lane if self._plan.closed else number, request)
            self._done()

    async def _ask(self, stream: int, request: Request) -> None:
        begun = self._now() if request.due is None else request.due
        client = self._clients[stream % len(self._clients)]
        call = client.stream(
            request.prompt, request.sampling, service_class=request.service_class, target_only=request.target_only
        )
        arrivals: list[Arrival] = []
        error = None
        try:
            async with call:
                async for event in call:
                    if event.token_ids:  # one by one: what came before a failure counts
                        arrivals.append(Arrival(self._now(), len(event.token_ids), event.accepted))  # noqa: PERF401
        except SpecfleetError as failed:
            error = failed
        finally:
            self.records.append(self._record(stream, request, begun, call, tuple(arrivals), error))

    def _record(
        self,
        stream: int,
        request: Request,
        begun: float,
        call: AsyncStream,
        arrivals: tuple[Arrival, ...],
        error: SpecfleetError | None,
    ) -> Record:
        return Record(
            stream=stream,
            service_class=request.service_class,
            begun=begun,
            ended=self._now(),
            finished=call.finish_reason in (FinishReason.STOP, FinishReason.LENGTH),
            arrivals=arrivals,
            error=error,
            speculation=call.speculation,
            policy=call.server.policy,
        )

    def _now(self) -> float:
        return time.perf_counter() - self.start
