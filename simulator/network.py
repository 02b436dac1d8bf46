"""A modelled network: Verify streams in memory whose messages take their time, in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from specfleet.core.errors import SpecfleetError
from specfleet.core.protocol import ServerStream, VerifyRequest, VerifyResponse
from specfleet.core.types import Load, ModelInfo

T = TypeVar("T")
Delay = Callable[[], float]
"""Seconds that the next message takes one way."""


class Backend(Protocol):
    """What a verifier is to its network."""

    async def serve(self, stream: ServerStream, identity: str) -> None: ...

    def model(self) -> ModelInfo: ...

    def load(self) -> Load: ...


class Pipe(Generic[T]):
    """One direction. A message never overtakes the one before it."""

    def __init__(self, delay: Delay) -> None:
        self._delay = delay
        self._arrived: asyncio.Queue[T] = asyncio.Queue()
        self._under_way: deque[T] = deque()
        self._last = 0.0

    def put(self, message: T) -> None:
        loop = asyncio.get_running_loop()
        self._last = max(self._last, loop.time() + self._delay())
        self._under_way.append(message)
        # Timers of one moment fire in any order; whichever does, the message sent first arrives first.
        loop.call_at(self._last, lambda: self._arrived.put_nowait(self._under_way.popleft()))

    async def get(self) -> T:
        return await self._arrived.get()


class Stream:
    """Both ends of one Verify stream: the drafter holds this one, `server` is the verifier's."""

    def __init__(self, delay: Delay) -> None:
        self._up: Pipe[VerifyRequest | None] = Pipe(delay)
        self._down: Pipe[VerifyResponse | SpecfleetError | None] = Pipe(delay)
        self._serving: asyncio.Task[None] | None = None

    def begin(self, backend: Backend, identity: str) -> None:
        self._serving = asyncio.create_task(self._serve(backend, identity))

    async def send(self, message: VerifyRequest) -> None:
        self._up.put(message)

    async def receive(self) -> VerifyResponse | None:
        message = await self._down.get()
        if isinstance(message, SpecfleetError):
            raise message
        return message

    def cancel(self) -> None:
        if self._serving is not None:
            self._serving.cancel()

    async def _serve(self, backend: Backend, identity: str) -> None:
        try:
            await backend.serve(ServerEnd(self._up, self._down), identity)
            self._down.put(None)
        except SpecfleetError as error:
            self._down.put(error)


class ServerEnd:
    """The verifier's end."""

    def __init__(self, up: Pipe[VerifyRequest | None], down: Pipe[VerifyResponse | SpecfleetError | None]) -> None:
        self._up = up
        self._down = down

    async def receive(self) -> VerifyRequest | None:
        return await self._up.get()

    async def send(self, message: VerifyResponse) -> None:
        self._down.put(message)


class Connection:
    """VerifierConnection of one identity over links of the given delay."""

    def __init__(self, backend: Backend, identity: str, delay: Delay, target: str = "verifier") -> None:
        self._backend = backend
        self._identity = identity
        self._delay = delay
        self._target = target

    @property
    def target(self) -> str:
        return self._target

    async def verify(self) -> Stream:
        stream = Stream(self._delay)
        stream.begin(self._backend, self._identity)
        return stream

    async def model(self) -> ModelInfo:
        return self._backend.model()

    async def load(self) -> Load:
        return self._backend.load()

    async def tokenizer_files(self) -> dict[str, bytes]:
        return {}

    async def close(self) -> None:
        pass
