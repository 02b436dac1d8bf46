"""An asyncio event loop whose clock jumps to the next timer when nothing is left to run. An hour passes in a moment, and the
same program does the same things in the same order every time: what is due at one moment runs in the order in which it was
asked for.

A simulated second is some ten thousand callbacks, so the loop keeps its own, leaner handles: no file is ever waited for, and
timers are compared as tuples.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import Context, copy_context
from heapq import heapify, heappop, heappush
from typing import Any, TypeVar

T = TypeVar("T")
COMPACT_AT = 256
"""Cancelled timers in the heap from which on they are swept out, once they are the most of it."""


class Stalled(RuntimeError):
    """Everybody waits for something that no timer will bring."""


BARE = Context()
"""For callbacks that look at no context variable: nothing to copy."""


class _Call(list[Any]):
    """A callback that waits for its turn, its arguments and its context; what asyncio calls a handle. A list, since making an
    object of a class of one's own takes three times as long. Cancelled, it is `_nothing` that is called."""

    __slots__ = ()

    def cancel(self) -> None:
        self[0], self[1] = _nothing, ()

    def cancelled(self) -> bool:
        return self[0] is _nothing


class _Timer(_Call):
    """One that waits for its moment first. Behind those of a call, the loop in whose heap it is; None once it is not."""

    __slots__ = ()

    def cancel(self) -> None:
        if self[0] is not _nothing:
            self[0], self[1] = _nothing, ()
            if self[3] is not None:
                self[3].timers_cancelled += 1


def _nothing() -> None:
    pass


def wake(future: asyncio.Future[None]) -> None:
    """Whoever waits for it, if anybody still does."""
    if not future.done():
        future.set_result(None)


def sleep(seconds: float) -> Awaitable[None]:
    """asyncio.sleep, in less time on this loop."""
    return sleeper()(seconds)


def sleeper() -> Callable[[float], Awaitable[None]]:
    """The running loop's `sleep`, for who needs it often."""
    loop = asyncio.get_running_loop()
    return loop.nap if isinstance(loop, VirtualLoop) else asyncio.sleep


class NoFiles(selectors.BaseSelector):
    """Takes files in and never looks at them."""

    def __init__(self) -> None:
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        return self._keys[number]

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time begins at 0 and passes only when nothing is left to run."""

    get_debug = staticmethod(bool)
    """No. Asked for every future, by C code, from which a function in Python costs more than the rest of a future."""

    def __init__(self) -> None:
        self.now = 0.0
        """What `time` tells."""
        self._due: deque[Sequence[Any]] = deque()
        """Calls, and tuples of the same form without a context: a function, and what it is called with."""
        self._timers: list[tuple[float, int, Sequence[Any]]] = []
        self._asked = 0
        self.timers_cancelled = 0
        """Cancelled timers that are still in the heap."""
        self.events = 0
        """Callbacks run so far."""
        super().__init__(NoFiles())

    def time(self) -> float:
        return self.now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Call:
        call = _Call((callback, args, context if context is not None else copy_context(), None))
        self._due.append(call)
        return call

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Call:
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Timer:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Timer:
        call = _Timer((callback, args, context if context is not None else copy_context(), self))
        self._asked += 1
        heappush(self._timers, (when, self._asked, call))
        return call

    def at(self, when: float, callback: Callable[[Any], object], what: Any) -> None:
        """Call it then; as call_at, for what is never cancelled and looks at no context variable."""
        self._asked += 1
        heappush(self._timers, (when, self._asked, (callback, what, None, None)))

    def nap(self, seconds: float) -> asyncio.Future[None]:
        """As asyncio.sleep, with less around it: await it at once."""
        future: asyncio.Future[None] = self.create_future()
        self._asked += 1
        heappush(self._timers, (self.now + seconds, self._asked, (wake, future, None, None)))
        return future

    def _run_once(self) -> None:
        """Everything that can run now; if that is nothing, what the next moment brings."""
        due = self._due
        if not due:
            self._advance()
        count, next_one = len(due), due.popleft
        self.events += count
        for _ in range(count):
            callback, what, context, _ = next_one()
            try:
                if context is None:
                    callback(what)
                else:
                    context.run(callback, *what)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 (as asyncio's own loop does)
                self.call_exception_handler({"message": f"exception in {callback!r}", "exception": error})

    def _advance(self) -> None:
        """Let time pass until the next timer, and take in all timers of that moment."""
        timers = self._timers
        if self.timers_cancelled > COMPACT_AT and 2 * self.timers_cancelled > len(timers):
            timers[:] = [entry for entry in timers if entry[2][0] is not _nothing]
            heapify(timers)
            self.timers_cancelled = 0
        while timers and timers[0][2][0] is _nothing:
            heappop(timers)
            self.timers_cancelled -= 1
        if not timers:
            raise Stalled("everybody waits, and no timer is set")
        now = self.now = max(self.now, timers[0][0])
        while timers and timers[0][0] <= now:
            call = heappop(timers)[2]
            if call[0] is _nothing:
                self.timers_cancelled -= 1
            else:
                if type(call) is _Timer:
                    call[3] = None
                self._due.append(call)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end in virtual time, which begins at 0; `asyncio.get_running_loop().time` tells it.

    Raises:
        Stalled: it waits for something that nothing will bring.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
