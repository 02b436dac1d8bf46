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


class Running:
    """The tasks that serve calls, over whatever they came."""

    def __init__(self) -> None:
        self._all: set[asyncio.Task[Any]] = set()
        self._awaited: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._moving = False

    def __len__(self) -> int:
        return len(self._all)

    @property
    def watchers(self) -> int:
        """Those that nobody waits for."""
        return len(self._all) - len(self._awaited)

    async def finish(self, seconds: float) -> None:
        """Wait until no awaited call runs, `seconds` at most; then end all that are left with Unavailable."""
        try:
            async with asyncio.timeout(seconds):
                while self._awaited:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        self._moving = True
        for task in self._all:
            task.cancel()

    @asynccontextmanager
    async def counted(self, gone: Callable[[], bool], *, awaited: bool = True) -> AsyncIterator[None]:
        """The call that this task serves. Raises Unavailable where it was ended by `finish` rather than by a caller who is
        `gone`."""
        task = asyncio.current_task()
        assert task is not None, "every call is served in a task"
        self._all.add(task)
        if awaited:
            self._awaited.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._moving or gone():
                raise
            task.uncancel()
            raise Unavailable("this server is stopping, its time to drain is up; go on elsewhere") from None
        finally:
            self._all.discard(task)
            self._awaited.discard(task)
            self._changed.set()


class Calls(grpc.aio.ServerInterceptor):
    """The calls of a gRPC server."""

    def __init__(self) -> None:
        self._running = Running()

    async def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        awaited = details.method.startswith(OURS)
        around = wrapped(handler, partial(self._counted, awaited=awaited))
        return around if awaited or not handler.response_streaming else wrapped(around, self._few)

    async def finish(self, seconds: float) -> None:
        """See Running.finish."""
        await self._running.finish(seconds)

    @asynccontextmanager
    async def _few(self, _request: Any, context: Any) -> AsyncIterator[None]:
        if self._running.watchers >= MAX_WATCHERS:
            await abort(context, Overloaded(f"{MAX_WATCHERS} calls watch this server already", retry_after=1.0))
        yield

    @asynccontextmanager
    async def _counted(self, _request: Any, context: Any, *, awaited: bool) -> AsyncIterator[None]:
        try:
            async with self._running.counted(context.cancelled, awaited=awaited):
                yield
        except Unavailable as error:
            await abort(context, error)
