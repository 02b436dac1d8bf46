"""The engine's own thread, as an event loop sees it: one call at a time, awaited."""

from __future__ import annotations

import asyncio
import queue
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
Job = tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]]


class EngineThread:
    """Runs what it is given, in order. What an executor of one thread does, for half of its Python: two futures a call instead
    of one, with their locks, are some 60 µs, which a small model's step notices."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        # A daemon, ended by the finalizer: otherwise whoever forgets `shutdown` could not even leave the interpreter.
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, _end, self._jobs, self._thread)

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """What `call(*arguments)` returns or raises. Who stops waiting does not stop the call."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put((future, call, arguments))
        return await future

    def shutdown(self) -> None:
        """Wait for all that was asked for, and end the thread."""
        self._end()


def _work(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        future, call, arguments = job
        try:
            tell, what = future.set_result, call(*arguments)
        except BaseException as error:  # noqa: BLE001 (whoever waits gets it)
            tell, what = future.set_exception, error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            future.get_loop().call_soon_threadsafe(_tell, future, tell, what)
        del job, future, call, arguments, tell, what


def _tell(future: asyncio.Future[Any], tell: Callable[[Any], None], what: Any) -> None:
    if not future.done():  # cancelled meanwhile
        tell(what)


def _end(jobs: queue.SimpleQueue[Job | None], thread: threading.Thread) -> None:
    jobs.put(None)
    thread.join()
