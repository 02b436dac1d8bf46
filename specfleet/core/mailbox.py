"""What one task waits for and others bring, within one event loop: asyncio's Event and Queue for a single waiter, which is
what a stream's reader is, in a third of their time. A fleet passes some ten of these in every round."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Signal:
    """An event with one waiter."""

    __slots__ = ("_loop", "_set", "_waiter")

    def __init__(self) -> None:
        self._set = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._set = True
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def clear(self) -> None:
        self._set = False

    async def wait(self) -> None:
        """Until it is set; at once if it is."""
        if self._set:
            return
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._waiter = self._loop.create_future()
        await self._waiter


class Mailbox(Generic[T]):
    """An unbounded queue with one reader. An error in it is raised when its turn comes. A reader that is cancelled leaves what
    had come in the box."""

    __slots__ = ("_items", "_loop", "_waiter")

    def __init__(self) -> None:
        # Hardly ever more than one: a deque takes half a kilobyte, which thousands feel.
        self._items: list[T | Exception] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        """Items that wait to be taken."""
        return len(self._items)

    def put(self, item: T | Exception) -> None:
        self._items.append(item)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def get(self) -> T:
        """The next item, in the order in which they were put. Raises it where it is an error."""
        items = self._items
        while not items:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._waiter = self._loop.create_future()
            await self._waiter
        item = items.pop(0)
        if isinstance(item, Exception):
            raise item
        return item
