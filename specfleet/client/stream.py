"""One generation as its caller sees it: events while they come, totals at the end, broken connections mended."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, Self

from specfleet.client.reply import Reply, Timing
from specfleet.core.clock import Clock
from specfleet.core.errors import (
    Cancelled,
    ConnectionError_,
    DeadlineExceeded,
    InvalidRequest,
    RequestRejected,
    SpecfleetError,
    StreamInterrupted,
    Unavailable,
)
from specfleet.core.generation import Completed, Event, GenerationRequest, Started, Tokens
from specfleet.core.types import FinishReason, Speculation, TopLogprobs, Usage

MOVABLE = (ConnectionError_, Unavailable, StreamInterrupted, Cancelled)
"""What another server, or the same one later, can make good. Cancelled: by the server; our own is told apart before."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to keep trying; seconds. `timeout` bounds all of it."""

    timeout: float = 60.0
    connect: float = 5.0
    """For one connection to come about."""
    retries: int = 2
    """Further rounds over all servers before the first token."""
    resume: float = 60.0
    """For a stream that broke to find another server."""

    def within(self, timeout: float | None) -> Patience:
        """The same with one call's own timeout. Raises InvalidRequest."""
        changed = self if timeout is None else replace(self, timeout=timeout)
        if not (changed.timeout > 0 and math.isfinite(changed.timeout)):
            raise InvalidRequest.field("timeout", f"is {changed.timeout!r}, must be a finite number of seconds above 0")
        return changed

    @property
    def reach(self) -> float:
        """For one connection, where no more time than that is left."""
        return min(self.connect, self.timeout)


class Call(Protocol):
    """One attempt at a generation."""

    async def next(self) -> Event | None:
        """The next event, None at the end. Raises the typed error of a call that failed."""
        ...

    def cancel(self) -> None: ...


class Server(Protocol):
    """Who may serve a generation; `specfleet.client.connection.Connection` over gRPC."""

    target: str
    failed_at: float
    """When a generation last failed here, by the stream's clock."""

    async def generate(self, request: GenerationRequest, *, connect_within: float, within: float) -> Call:
        """Begin a generation that ends `within` so many seconds. Raises ConnectionError_ when nothing listens."""
        ...


class AsyncStream:
    """Iterate for `Tokens`; afterwards `usage`, `speculation`, `finish_reason`, `timing`, `reply`.

    Before the first token a failed attempt is repeated, on the next server first; after it the generation is *resumed*
    behind the tokens that came. Without a seed the continuation is a fresh sample of the same distribution.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        request: GenerationRequest,
        patience: Patience,
        clock: Clock = time.perf_counter,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`clock` and `jitter` (a number between two) are given where time and chance are not the machine's."""
        self.request = request
        self.server = Started(request.request_id)
        self.finish_reason: FinishReason | None = None
        """None while it runs."""
        self.speculation = Speculation()
        """Totals of the stream that completed; `resumes` counts the ones before it."""
        self._servers = servers
        self._patience = patience
        self._clock = clock
        self._jitter = jitter
        self._usage: Usage | None = None
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._top_logprobs: list[TopLogprobs] = []
        self._text: list[str] = []
        self._call: Call | None = None
        self._tail: Tokens | None = None
        self._failures = 0
        self._resumes = 0
        self._cancelled = asyncio.Event()
        self._begun: float | None = None
        self._first: float | None = None
        self._broke: float | None = None
        self._ended: float | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Tokens:
        event = await self.next_event()
        if event is None:
            raise StopAsyncIteration
        return event

    async def next_event(self) -> Tokens | None:
        """The next tokens, None at the end (also after `cancel`). Raises the typed error of a generation that failed."""
        try:
            while self.finish_reason is None:
                event = await self._step()
                if event is not None:
                    return event
        except BaseException as error:
            if self._cancelled.is_set() and isinstance(error, Cancelled):
                self._finish(FinishReason.CANCELLED)
                return None
            cancelled = isinstance(error, asyncio.CancelledError)
            self._finish(FinishReason.CANCELLED if cancelled else FinishReason.ERROR)
            raise
        return None

    async def cancel(self) -> None:
        """Stop the generation, here and on the server. Harmless when it has ended."""
        self._cancelled.set()
        self._finish(FinishReason.CANCELLED)

    @property
    def request_id(self) -> str:
        """What servers' logs carry."""
        return self.request.request_id

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._text)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(self._token_ids)

    @property
    def usage(self) -> Usage:
        """What the server counted; before the end, the tokens received."""
        return self._usage or Usage(completion_tokens=len(self._token_ids))

    @property
    def timing(self) -> Timing:
        now = self._clock() if self._ended is None else self._ended
        begun = now if self._begun is None else self._begun
        first = now if self._first is None else self._first
        total, ttft, more = now - begun, first - begun, len(self._token_ids) - 1
        return Timing(ttft, (total - ttft) / more if more > 0 else 0.0, total)

    @property
    def reply(self) -> Reply:
        """What there is by now; whole once `finish_reason` is set."""
        return Reply(
            text=self.text,
            token_ids=self.token_ids,
            finish_reason=self.finish_reason or FinishReason.CANCELLED,
            usage=self.usage,
            speculation=self.speculation,
            timing=self.timing,
            server=self.server,
            logprobs=tuple(self._logprobs) if self.request.sampling.logprobs else None,
            top_logprobs=tuple(self._top_logprobs) if self.request.sampling.top_logprobs else None,
        )

    async def _step(self) -> Tokens | None:
        """One event from the call at hand, or the next attempt at getting one."""
        try:
            if self._call is None:
                self._call = await self._attempt()
            event = await self._call.next()
        except DeadlineExceeded as error:
            raise self._out_of_time() from error
        except SpecfleetError as error:
            self._check_cancelled()
            if not self._can_move(error):
                raise
            await self._move(error)
            return None
        match event:
            case Started():
                self.server = event
            case Tokens():
                return self._tokens(event)
            case Completed():
                return await self._completed(event)
            case None:
                await self._move(StreamInterrupted("the server ended the stream before the text was finished"))
        return None

    async def _attempt(self) -> Call:
        self._check_cancelled()
        if self._begun is None:
            self._begun = self._clock()
        if self._token_ids:
            # Named, so that a server with another model refuses instead of going on in other words.
            self.request = replace(
                self.request, output_token_ids=self.token_ids, model=self.server.model or self.request.model
            )
        left = self._left()
        call = await self._server.generate(self.request, connect_within=min(self._patience.connect, left), within=left)
        if self._cancelled.is_set():
            call.cancel()
        return call

    @property
    def _server(self) -> Server:
        return self._servers[self._failures % len(self._servers)]

    async def _move(self, error: SpecfleetError) -> None:
        """After a failed attempt: return to try the next server, or raise when there is no point any more."""
        now = self._clock()
        self._server.failed_at = now
        self._call = self._tail = None
        self._failures += 1
        if self._broke is None:
            self._broke = now
            self._resumes += bool(self._token_ids)
        rounds, place = divmod(self._failures, len(self._servers))
        if self._token_ids:
            if now - self._broke > self._patience.resume:
                raise self._interrupted(error) from error
        elif rounds > self._patience.retries:
            raise self._unreachable(error) from error
        if place == 0:
            pause = min(_FIRST_PAUSE * 2 ** (rounds - 1), _LONGEST_PAUSE) * self._jitter(0.5, 1.0)
            await self._pause(min(max(pause, error.retry_after or 0.0), self._left()))

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._cancelled.wait()
        except TimeoutError:
            return
        self._check_cancelled()

    def _can_move(self, error: SpecfleetError) -> bool:
        """While resuming, what one server refuses (another model, no room) may still go on at the next one."""
        resuming = self._broke is not None and bool(self._token_ids)
        return isinstance(error, MOVABLE) or (resuming and isinstance(error, RequestRejected))

    def _tokens(self, event: Tokens) -> Tokens | None:
        if not event.token_ids:
            # Held-back text has no id to resume behind: it counts only once the end has come as well.
            self._tail = event
            return None
        if self._first is None:
            self._first = self._clock()
        self._failures %= len(self._servers)  # stay with this server, with fresh patience
        self._broke = None
        return self._take(event)

    def _take(self, event: Tokens) -> Tokens:
        self._token_ids.extend(event.token_ids)
        self._logprobs.extend(event.logprobs or ())
        self._top_logprobs.extend(event.top_logprobs or ())
        self._text.append(event.text)
        return event

    async def _completed(self, event: Completed) -> Tokens | None:
        if self._call is not None:
            with suppress(SpecfleetError):
                await self._call.next()  # the call's own end: cancelling it now would count as a cancelled generation
        self._usage = event.usage
        self.speculation = event.speculation
        self.speculation.resumes += self._resumes
        self._finish(event.reason)
        return self._take(self._tail) if self._tail is not None else None

    def _finish(self, reason: FinishReason) -> None:
        if self.finish_reason is None:
            self.finish_reason = reason
            self._ended = self._clock()
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _left(self) -> float:
        """Seconds until the deadline. Raises DeadlineExceeded after it."""
        left = (self._begun or 0.0) + self._patience.timeout - self._clock()
        if left <= 0:
            raise self._out_of_time()
        return left

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled("cancelled")

    def _details(self) -> dict[str, str]:
        return {"completion_tokens": str(len(self._token_ids))}

    def _out_of_time(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"out of time after {self._patience.timeout:g} s and {len(self._token_ids)} tokens; "
            "allow more with timeout, or ask for fewer with max_tokens",
            details=self._details(),
            request_id=self.request.request_id,
        )

    def _interrupted(self, error: SpecfleetError) -> StreamInterrupted:
        return StreamInterrupted(
            f"the stream broke after {len(self._token_ids)} tokens and could not be resumed: {error}",
            details=self._details(),
            request_id=self.request.request_id,
        )

    def _unreachable(self, error: SpecfleetError) -> SpecfleetError:
        if len(self._servers) == 1 or not isinstance(error, ConnectionError_):
            return error
        names = ", ".join(server.target for server in self._servers)
        return ConnectionError_(f"none of {names} can be reached; the last one: {error}")
