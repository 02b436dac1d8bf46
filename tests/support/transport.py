"""Verify streams in memory: a drafter's end and a verifier's end over two queues."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from specfleet.core.errors import SpecfleetError
from specfleet.core.protocol import ServerStream, VerifyRequest, VerifyResponse
from specfleet.core.types import Load, ModelInfo


class Backend(Protocol):
    async def serve(self, stream: ServerStream, identity: str) -> None: ...

    def model(self) -> ModelInfo: ...

    def load(self) -> Load: ...


class MemoryStream:
    """Both ends of one stream; the server's end runs as a task."""

    def __init__(self, seen: list[VerifyRequest], delay: float = 0.0) -> None:
        """`delay`: seconds that each message takes."""
        self._seen = seen
        self._delay = delay
        self._last = 0.0
        self.up: asyncio.Queue[VerifyRequest | None] = asyncio.Queue()
        self.down: asyncio.Queue[VerifyResponse | SpecfleetError | None] = asyncio.Queue()
        self.server: asyncio.Task[None] | None = None

    async def send(self, message: VerifyRequest) -> None:
        self._seen.append(message)
        self.arrive(self.up, message)

    def arrive(self, queue: asyncio.Queue[Any], message: Any) -> None:
        """In order, however long it takes."""
        if not self._delay:
            queue.put_nowait(message)
            return
        loop = asyncio.get_running_loop()
        self._last = max(loop.time() + self._delay, self._last + 1e-6)
        loop.call_at(self._last, queue.put_nowait, message)

    async def receive(self) -> VerifyResponse | None:
        message = await self.down.get()
        if isinstance(message, SpecfleetError):
            raise message
        return message

    def cancel(self) -> None:
        if self.server is not None:
            self.server.cancel()


class _ServerEnd:
    def __init__(self, stream: MemoryStream) -> None:
        self._stream = stream

    async def receive(self) -> VerifyRequest | None:
        return await self._stream.up.get()

    async def send(self, message: VerifyResponse) -> None:
        self._stream.arrive(self._stream.down, message)


class MemoryConnection:
    """VerifierConnection to a backend in the same process."""

    target = "memory"

    def __init__(self, backend: Backend, identity: str = "memory", delay: float = 0.0) -> None:
        """`delay`: seconds to the backend, and as many back."""
        self.delay = delay
        self.backend = backend
        self.identity = identity
        self.streams: list[MemoryStream] = []
        self.seen: list[VerifyRequest] = []
        """Everything drafters have sent."""

    async def verify(self) -> MemoryStream:
        stream = MemoryStream(self.seen, self.delay)
        stream.server = asyncio.create_task(self._serve(stream))
        self.streams.append(stream)
        return stream

    async def _serve(self, stream: MemoryStream) -> None:
        try:
            await self.backend.serve(_ServerEnd(stream), self.identity)
            stream.arrive(stream.down, None)
        except SpecfleetError as error:
            stream.arrive(stream.down, error)

    async def model(self) -> ModelInfo:
        return self.backend.model()

    async def load(self) -> Load:
        return self.backend.load()

    async def tokenizer_files(self) -> dict[str, bytes]:
        return {}

    async def close(self) -> None:
        for stream in self.streams:
            stream.cancel()
