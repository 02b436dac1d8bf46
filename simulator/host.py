"""A machine whose processors several daemons share, as on a developer's desk: what runs at the same time runs slower.

Processor sharing: while more threads want to run than there are processors, all of them progress at the same rate,
processors / threads. A step or a draft wants as many threads as it was measured with.

A daemon is one interpreter with an event loop and an engine's thread. Each message costs the daemon that sends it and the one
that receives it some time of their loops, which handle one thing after another; so does a call of the engine, on its way there
and when its result comes back. What waits for the loop meanwhile, such as verdicts to be sent, goes first: only one of the two
has the interpreter, and the loop keeps it until it has nothing left to do. Once the engine computes it is outside of it.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from simulator.clock import BARE, wake

SWITCH_SECONDS = 0.005
"""After which CPython takes the interpreter from a thread that others wait for (sys.getswitchinterval)."""


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
        self._ends: list[tuple[float, int, float, Callable[[], object]]] = []
        """A heap: of each piece of work, what will have been served when it is done, its threads, and whom to tell."""
        self._begun = 0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, seconds: float, threads: float, done: Callable[[], object]) -> None:
        """Work of so many seconds, if all its threads had a processor. It cannot be given up."""
        self._catch_up()
        self._begun += 1
        self._threads += threads
        heapq.heappush(self._ends, (self._served + seconds, self._begun, threads, done))
        self._plan()

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
        self._threads = self._threads - threads if self._ends else 0.0
        self._plan()
        done()


class EventLoop:
    """A daemon's: one message after another, and what passes between it and the engine's thread."""

    def __init__(self, host: Host, message_seconds: float) -> None:
        self._host = host
        self._seconds = message_seconds
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._asked: deque[tuple[float, float, float, Callable[[], object]]] = deque()
        """Calls of the engine that wait for the interpreter: since when, seconds, threads, and whom to tell."""
        self._busy = False

    def handle(self, then: Callable[..., object], *args: Any) -> None:
        """Send or receive a message, then do that."""
        self._waiting.append((then, args))
        if not self._busy:
            self._next()

    def call(self, seconds: float, threads: float, done: Callable[[], object]) -> None:
        """Have the engine compute for so many seconds on so many threads, then do that. One call at a time."""
        self.handle(self._ask, seconds, threads, done)

    async def called(self, seconds: float, threads: float) -> None:
        """The same, waited for. Who stops waiting does not stop the engine."""
        done: asyncio.Future[None] = self._loop.create_future()
        self.call(seconds, threads, partial(wake, done))
        await done

    def _ask(self, seconds: float, threads: float, done: Callable[[], object]) -> None:
        self._asked.append((self._loop.time(), seconds, threads, done))

    def _next(self) -> None:
        if self._asked and (not self._waiting or self._loop.time() - self._asked[0][0] >= SWITCH_SECONDS):
            _, seconds, threads, done = self._asked.popleft()
            self._host.begin(seconds, threads, partial(self.handle, done))
        self._busy = bool(self._waiting)
        if self._waiting:
            self._host.begin(self._seconds, 1.0, self._handled)

    def _handled(self) -> None:
        then, args = self._waiting.popleft()
        then(*args)
        self._next()
