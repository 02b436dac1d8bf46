"""Machines that crash and links that break, for simulation testing: what can go wrong between processes, in virtual time.

    client ── Call ──┐            ┌── Call ── handler
                     ├── Link ────┤
    client ── Call ──┘            └── Call ── handler      a Host runs the handlers, and takes them with it when it crashes

A link is whole, slow or cut. As over TCP, what is sent over a cut one arrives when it is mended, in order; a cut that lasts
breaks the calls, on each side when that side's keepalive finds out. A message may be repeated, at once or, if it is a draft,
much later; apart from that none overtakes another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from specfleet.core.errors import Cancelled, ConnectionError_, SpecfleetError, Unavailable
from specfleet.core.generation import Event, GenerationRequest, Generator
from specfleet.core.protocol import (
    Draft,
    ServerStream,
    Shadow,
    Verdict,
    VerifyRequest,
    VerifyResponse,
)
from specfleet.core.types import Load, ModelInfo

T = TypeVar("T")
Up = TypeVar("Up")
Down = TypeVar("Down")
KEEPALIVE_SECONDS = (10.0, 20.0)
"""A dead peer is found after something between these (specfleet.wire.channel)."""
LATE_SECONDS = 2.0
"""A repeated draft comes again within."""
REPEATABLE = (Draft, Shadow, Verdict)
"""Messages that say the same when said twice."""


class Link:
    """The way between two machines. Everything over it shares its fate."""

    def __init__(self, rng: np.random.Generator, delay: float) -> None:
        """`delay`: seconds one way, times something between 0.5 and 1.5 for each message."""
        self.rng = rng
        self.delay = delay
        self.slow = 0.0
        """Seconds on top."""
        self.repeats = 0.0
        """Share of messages that arrive twice."""
        self.mended = asyncio.Event()
        self.mended.set()
        self._severed = asyncio.Event()
        self._cut_at = 0.0

    def cut(self) -> None:
        if self.mended.is_set():
            self._cut_at = asyncio.get_running_loop().time()
            self.mended.clear()
            self._severed.set()

    def mend(self) -> None:
        self._severed.clear()
        self.mended.set()

    def latency(self) -> float:
        return float((self.delay + self.slow) * self.rng.uniform(0.5, 1.5))

    async def broken(self) -> None:
        """Returns when one side has found out that the link is cut; each call draws its own moment."""
        while True:
            await self._severed.wait()
            patience = float(self.rng.uniform(*KEEPALIVE_SECONDS))
            left = self._cut_at + patience - asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(max(left, 0.0)):
                    await self.mended.wait()
            except TimeoutError:
                return


class Pipe(Generic[T]):
    """One direction of a call over a link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._under_way: asyncio.Queue[tuple[float, T]] = asyncio.Queue()
        self._echoes: list[asyncio.TimerHandle] = []
        self.arrived: asyncio.Queue[T] = asyncio.Queue()

    def put(self, message: T) -> None:
        self._under_way.put_nowait((asyncio.get_running_loop().time() + self._link.latency(), message))

    def close(self) -> None:
        """Nothing arrives any more."""
        for echo in self._echoes:
            echo.cancel()

    def drop(self) -> None:
        """Lose a part of what is under way: whoever sent it has died."""
        keep = int(self._link.rng.integers(0, self._under_way.qsize() + 1))
        kept = [self._under_way.get_nowait() for _ in range(self._under_way.qsize())][:keep]
        for item in kept:
            self._under_way.put_nowait(item)

    async def carry(self) -> None:
        """Until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            due, message = await self._under_way.get()
            await asyncio.sleep(max(0.0, due - clock()))
            await self._link.mended.wait()
            self.arrived.put_nowait(message)
            if isinstance(message, REPEATABLE) and self._link.rng.random() < self._link.repeats:
                self._repeat(message)

    def _repeat(self, message: T) -> None:
        if isinstance(message, Draft) and self._link.rng.random() < 0.5:
            late = float(self._link.rng.uniform(0.0, LATE_SECONDS))
            self._echoes.append(asyncio.get_running_loop().call_later(late, self.arrived.put_nowait, message))
        else:
            self.arrived.put_nowait(message)


@dataclass(frozen=True, slots=True)
class _GivenUp:
    """What the client's end sends when it cancels."""


class Call(Generic[Up, Down]):
    """A stream of messages both ways. This is the client's end; the host holds `ServerEnd`."""

    def __init__(self, link: Link, host: Host, handler: Callable[[ServerEnd[Up, Down]], Awaitable[None]]) -> None:
        self._link = link
        self._host = host
        self._handler = handler
        self.up: Pipe[Up | _GivenUp] = Pipe(link)
        self.down: Pipe[Down | SpecfleetError | None] = Pipe(link)
        self._serving: asyncio.Task[None] | None = None
        self._ended: SpecfleetError | None = None
        """What this end has found out: nothing that arrives counts any more."""
        self._over = False
        self._tasks = [asyncio.create_task(one) for one in self._parts()]

    def _parts(self) -> list[Coroutine[Any, Any, None]]:
        return [self.up.carry(), self.down.carry(), self._arrive(), self._client_keepalive(), self._server_keepalive()]

    # --- the client's end ------------------------------------------------------------------------------------------

    async def send(self, message: Up) -> None:
        if self._ended is not None:
            raise self._ended
        self.up.put(message)

    async def receive(self) -> Down | None:
        if self._ended is not None:
            raise self._ended
        message = await self.down.arrived.get()
        if self._ended is None and (message is None or isinstance(message, SpecfleetError)):
            self._close()
            self._ended = message or Cancelled("the stream has ended")
        if isinstance(message, SpecfleetError):
            raise message
        return message

    def cancel(self) -> None:
        """The other end learns of it when the message gets there."""
        if self._ended is None:
            self._ended = Cancelled("the stream was given up")
            self.down.arrived.put_nowait(self._ended)
            self.up.put(_GivenUp())

    # --- in between ------------------------------------------------------------------------------------------------

    async def _arrive(self) -> None:
        """What reaches the host: the first message begins the handler, a cancellation ends it."""
        end = ServerEnd(self)
        while True:
            message = await self.up.arrived.get()
            if isinstance(message, _GivenUp):
                self._close()
                return
            end.arrived.put_nowait(message)
            if self._serving is None:
                refusal = self._host.refusal()
                if refusal is not None:
                    self.down.put(refusal)
                    continue
                self._host.calls[self] = None
                self._serving = asyncio.create_task(self._serve(end))

    async def _serve(self, end: ServerEnd[Up, Down]) -> None:
        try:
            await self._handler(end)
            self.down.put(None)
        except SpecfleetError as error:
            self.down.put(error)
        except Exception as error:
            self._host.bugs.append(error)
            raise
        finally:
            self._host.calls.pop(self, None)

    async def _client_keepalive(self) -> None:
        await self._link.broken()
        if self._ended is None:
            self._ended = ConnectionError_(f"{self._host.name} does not answer")
            self.down.arrived.put_nowait(self._ended)
            self.up.put(_GivenUp())

    async def _server_keepalive(self) -> None:
        await self._link.broken()
        if self._serving is not None:
            self._serving.cancel()
            self.down.put(ConnectionError_("the connection was closed"))

    # --- the host's end --------------------------------------------------------------------------------------------

    def abort(self, error: SpecfleetError, *, lose: bool) -> None:
        """The host ends the call, losing what it had said last if it `lose`s its memory."""
        if self._serving is not None:
            self._serving.cancel()
        if lose:
            self.down.drop()
        self.down.put(error)

    def _close(self) -> None:
        """Nothing moves any more."""
        if self._over:
            return
        self._over = True
        if self._serving is not None:
            self._serving.cancel()
        self.up.close()
        self.down.close()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()


class ServerEnd(Generic[Up, Down]):
    def __init__(self, call: Call[Up, Down]) -> None:
        self._call = call
        self.arrived: asyncio.Queue[Up] = asyncio.Queue()

    async def receive(self) -> Up | None:
        return await self.arrived.get()

    async def send(self, message: Down) -> None:
        self._call.down.put(message)


class Host:
    """A machine, or the process on it: up with a backend, draining, or down."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.up = False
        self.draining = False
        self.calls: dict[Call[Any, Any], None] = {}
        """In the order they came: a set's would differ from process to process."""
        self.bugs: list[Exception] = []
        """What handlers raised that no handler may."""

    def refusal(self) -> SpecfleetError | None:
        if not self.up:
            return ConnectionError_(f"cannot reach {self.name}: connection refused")
        if self.draining:
            return Unavailable(f"{self.name} is draining")
        return None

    def crash(self) -> None:
        """Everything it did ends, and part of what it said last is lost."""
        self.up = self.draining = False
        for call in list(self.calls):
            call.abort(ConnectionError_(f"{self.name} closed the connection"), lose=True)
        self.calls.clear()

    async def drain(self, seconds: float) -> None:
        """No new calls; running ones have so long."""
        self.draining = True
        await asyncio.sleep(seconds)
        for call in list(self.calls):
            call.abort(Cancelled(f"{self.name} is shutting down"), lose=False)
        self.calls.clear()
        self.up = self.draining = False


# --- the two services ------------------------------------------------------------------------------------------------


class VerifierBackend(Protocol):
    async def serve(self, stream: ServerStream, identity: str) -> None: ...

    def model(self) -> ModelInfo: ...

    def load(self) -> Load: ...


class VerifierLink:
    """VerifierConnection to whatever verifier runs on a host just then."""

    def __init__(self, host: Host, link: Link, backend: Callable[[], VerifierBackend], identity: str) -> None:
        self._host = host
        self._link = link
        self._backend = backend
        self._identity = identity

    @property
    def target(self) -> str:
        return self._host.name

    async def verify(self) -> Call[VerifyRequest, VerifyResponse]:
        return Call(self._link, self._host, lambda end: self._backend().serve(end, self._identity))

    async def model(self) -> ModelInfo:
        return await self._ask(lambda: self._backend().model())

    async def load(self) -> Load:
        return await self._ask(lambda: self._backend().load())

    async def _ask(self, answer: Callable[[], T]) -> T:
        async def handler(end: ServerEnd[str, T]) -> None:
            await end.send(answer())

        call: Call[str, T] = Call(self._link, self._host, handler)
        try:
            await call.send("ask")
            found = await call.receive()
        finally:
            call.cancel()
        assert found is not None
        return found

    async def tokenizer_files(self) -> dict[str, bytes]:
        return {}

    async def close(self) -> None: ...


class GenerationLink:
    """specfleet.client.stream.Server: Generate on whatever runs on a host just then."""

    def __init__(self, host: Host, link: Link, generator: Callable[[], Generator]) -> None:
        self.target = host.name
        self.failed_at = float("-inf")
        self._host = host
        self._link = link
        self._generator = generator

    async def generate(self, request: GenerationRequest, *, connect_within: float, within: float) -> GenerateCall:
        async def handler(end: ServerEnd[GenerationRequest, Event]) -> None:
            events = self._generator().generate(request)
            try:
                async for event in events:
                    await end.send(event)
            finally:
                await events.aclose()  # type: ignore[attr-defined]

        call: Call[GenerationRequest, Event] = Call(self._link, self._host, handler)
        await call.send(request)
        return GenerateCall(call)


class GenerateCall:
    """specfleet.client.stream.Call."""

    def __init__(self, call: Call[GenerationRequest, Event]) -> None:
        self._call = call

    async def next(self) -> Event | None:
        return await self._call.receive()

    def cancel(self) -> None:
        self._call.cancel()
