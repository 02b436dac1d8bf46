"""A machine whose processors several daemons share, as on a developer's desk: what runs at the same time runs slower.

Processor sharing: while more threads want to run than there are processors, all of them progress at the same rate,
processors / threads. A step or a draft wants as many threads as it was measured with; each message costs the daemon that sends
it and the one that receives it some time of their event loops, which handle one after another.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from simulator.clock import BARE, wake


class Threads:
    """Of one engine or event loop. What is done on it together shares them."""

    __slots__ = ("count", "works")

    def __init__(self, count: float) -> None:
        self.count = count
        self.works = 0
        """Pieces of work under way."""


class Host:
    def __init__(self, processors: float) -> None:
        self._processors = processors
        self._loop = asyncio.get_running_loop()
        self._served = 0.0
        """Seconds of work that a thread which always ran would have done by `_at`."""
        self._at = 0.0
        self._rate = 1.0
        self._threads = 0.0
        """That run or want to."""
        self._ends: list[tuple[float, int, Threads, Callable[[], object]]] = []
        """A heap: of each piece of work, what will have been served when it is done, its threads, and whom to tell."""
        self._begun = 0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, seconds: float, threads: Threads, done: Callable[[], object]) -> None:
        """Work of so many seconds, if `threads` had the machine to themselves. It cannot be given up."""
        self._catch_up()
        self._begun += 1
        if not threads.works:
            self._threads += threads.count
        threads.works += 1
        heapq.heappush(self._ends, (self._served + seconds, self._begun, threads, done))
        self._plan()

    async def work(self, seconds: float, threads: Threads) -> None:
        """The same, waited for."""
        done: asyncio.Future[None] = self._loop.create_future()
        self.begin(seconds, threads, partial(wake, done))
        await done

    def _catch_up(self) -> None:
        now = self._loop.time()
        self._served += (now - self._at) * self._rate
        self._at = now

    def _plan(self) -> None:
        self._rate = min(1.0, self._processors / self._threads) if self._threads else 1.0
        if self._timer is not None:
            self._timer.cancel()
        left = max(0.0, self._ends[0][0] - self._served) / self._rate if self._ends else None
        self._timer = self._loop.call_at(self._at + left, self._end, context=BARE) if left is not None else None

    def _end(self) -> None:
        self._catch_up()
        end, _, threads, done = heapq.heappop(self._ends)
        self._served = max(self._served, end)
        threads.works -= 1
        if not threads.works:
            self._threads = self._threads - threads.count if self._ends else 0.0
        self._plan()
        done()


class EventLoop:
    """A daemon's: one message after another."""

    def __init__(self, host: Host, message_seconds: float) -> None:
        self._host = host
        self._seconds = message_seconds
        self._thread = Threads(1.0)
        self._waiting: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._busy = False

    def handle(self, then: Callable[..., object], *args: Any) -> None:
        """Send or receive a message, then do that."""
        self._waiting.append((then, args))
        if not self._busy:
            self._next()

    def _next(self) -> None:
        self._busy = bool(self._waiting)
        if self._waiting:
            self._host.begin(self._seconds, self._thread, self._handled)

    def _handled(self) -> None:
        then, args = self._waiting.popleft()
        then(*args)
        self._next()
