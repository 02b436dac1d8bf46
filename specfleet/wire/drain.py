"""Which calls run: stopping waits for them, and tells those that take too long to move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc.aio

from specfleet.core.errors import Overloaded, Unavailable
from specfleet.wire.interceptors import wrapped
from specfleet.wire.status import abort

OURS = "/specfleet."
"""Calls of these services are waited for; who watches health or asks for reflection is not."""
MAX_WATCHERS = 256
"""Streams of other services at a time. Health answers without credentials: whoever has none must not take all there is."""


class Calls(grpc.aio.ServerInterceptor):
    """The calls of a server, by their tasks."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._awaited: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._moving = False

    async def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        awaited = details.method.startswith(OURS)
        around = wrapped(handler, partial(self._counted, awaited=awaited))
        return around if awaited or not handler.response_streaming else wrapped(around, self._few)

    async def finish(self, seconds: float) -> None:
        """Wait until no call of ours runs, `seconds` at most; then end all that are left with Unavailable."""
        try:
            async with asyncio.timeout(seconds):
                while self._awaited:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        self._moving = True
        for task in self._running:
            task.cancel()

    @asynccontextmanager
    async def _few(self, _request: Any, context: Any) -> AsyncIterator[None]:
        if len(self._running) - len(self._awaited) >= MAX_WATCHERS:
            await abort(context, Overloaded(f"{MAX_WATCHERS} calls watch this server already", retry_after=1.0))
        yield

    @asynccontextmanager
    async def _counted(self, _request: Any, context: Any, *, awaited: bool) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None, "gRPC runs every call in a task"
        self._running.add(task)
        if awaited:
            self._awaited.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._moving or context.cancelled():
                raise
            task.uncancel()
            await abort(context, Unavailable("this server is stopping, its time to drain is up; go on elsewhere"))
        finally:
            self._running.discard(task)
            self._awaited.discard(task)
            self._changed.set()
