"""Links between a drafter and its verifiers: asymmetric, with jitter and bandwidth, counted in bytes; slow or cut for a while
where a configuration says so. Messages are never lost one by one, repeated or late: simulator.faults is for that."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from simulator.clock import VirtualLoop
from simulator.host import EventLoop
from simulator.sizes import size
from specfleet.core.errors import ConnectionError_, SpecfleetError
from specfleet.core.mailbox import Mailbox
from specfleet.core.protocol import Draft, VerifyRequest, VerifyResponse
from specfleet.core.types import Load, ModelInfo

if TYPE_CHECKING:
    from simulator.sites import Site


class Way:
    """One direction of one drafter's access, shared by all its streams."""

    __slots__ = ("_delay", "_free_at", "_held_until", "_jitter", "_rng", "_seconds_per_byte", "bytes")

    def __init__(self, delay: float, jitter: float, megabits: float | None, rng: random.Random) -> None:
        """`delay` in seconds; `jitter` is the mean of an exponential delay on top; `megabits` per second, None: no limit."""
        self.bytes = 0
        """That went this way."""
        self._delay = delay
        self._jitter = jitter
        self._seconds_per_byte = 8e-6 / megabits if megabits is not None else 0.0
        self._rng = rng
        self._free_at = 0.0
        self._held_until = 0.0

    def hold(self, until: float) -> None:
        """Nothing sent before `until` gets away before it."""
        self._held_until = max(self._held_until, until)

    def slow(self, seconds: float) -> None:
        """Messages take so much longer from now on; negative to undo it."""
        self._delay += seconds

    def arrival(self, now: float, count: int) -> float:
        """When a message of `count` bytes, sent now, is there."""
        self.bytes += count
        if now < self._held_until:
            now = self._held_until
        if self._seconds_per_byte:
            now = self._free_at = max(now, self._free_at) + count * self._seconds_per_byte
        if self._jitter:
            now += self._rng.expovariate(1.0 / self._jitter)
        return now + self._delay


class Pipe:
    """One direction of one stream: messages arrive in order."""

    __slots__ = ("_arrived", "_broken", "_last", "_loop", "_way", "get")

    def __init__(self, way: Way, loop: VirtualLoop) -> None:
        self._way = way
        self._loop = loop
        self._arrived: Mailbox[Any] = Mailbox()
        self._last = 0.0
        self._broken = False
        self.get = self._arrived.get
        """The next message. One reader at a time."""

    def put(self, message: Any, count: int) -> None:
        """Send a message of so many bytes."""
        at = self._way.arrival(self._loop.now, count)
        if at > self._last:
            self._last = at
        # What is due at one moment comes in the order in which it was asked for.
        self._loop.at(self._last, self._arrive, message)

    def fail(self, message: Any) -> None:
        """The reader's end has found out that the way is broken: it is told so now, and nothing else arrives."""
        self._broken = True
        self._arrived.put(message)

    def _arrive(self, message: Any) -> None:
        if not self._broken:
            self._arrived.put(message)


class PipeBetween(Pipe):
    """One whose ends' time its messages take, where that is modelled."""

    __slots__ = ("_receiver", "_sender")

    def __init__(self, way: Way, loop: VirtualLoop, sender: EventLoop | None, receiver: EventLoop | None) -> None:
        super().__init__(way, loop)
        self._sender = sender
        self._receiver = receiver

    def put(self, message: Any, count: int) -> None:
        if self._sender is None:
            super().put(message, count)
        else:
            self._sender.handle(super().put, message, count)

    def _arrive(self, message: Any) -> None:
        if self._receiver is None:
            super()._arrive(message)
        else:
            self._receiver.handle(super()._arrive, message)


def _pipe(way: Way, loop: VirtualLoop, sender: EventLoop | None, receiver: EventLoop | None) -> Pipe:
    return Pipe(way, loop) if sender is None is receiver else PipeBetween(way, loop, sender, receiver)


class Link:
    """VerifierConnection of one generation, and the stream it opens. Counts the drafted tokens that were sent."""

    __slots__ = ("_down", "_identity", "_serving", "_site", "_up", "sent")

    def __init__(self, site: Site, identity: str, up: Way, down: Way, own: EventLoop | None = None) -> None:
        """`own`: the drafter's, where its time is modelled."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.sent = 0
        """Drafted tokens."""
        self._site = site
        self._identity = identity
        self._up = _pipe(up, loop, own, site.event_loop)
        self._down = _pipe(down, loop, site.event_loop, own)
        self._serving: asyncio.Task[None] | None = None

    @property
    def target(self) -> str:
        return self._site.name

    async def verify(self) -> Link:
        self._site.links[self] = None
        self._serving = asyncio.get_running_loop().create_task(self._serve())
        return self

    async def send(self, message: VerifyRequest) -> None:
        if isinstance(message, Draft):
            self.sent += len(message.tokens)
        self._up.put(message, size(message))

    def receive(self) -> Coroutine[Any, Any, VerifyResponse | None]:
        return self._down.get()

    def cancel(self) -> None:
        if self._serving is not None:
            self._serving.cancel()

    def crashed(self) -> None:
        """The verifier is gone; its last words may still be under way."""
        self.cancel()
        self._down.put(ConnectionError_(f"{self.target} closed the connection"), 0)

    def broken(self) -> None:
        """Both sides have found out that the way between them is cut."""
        self.cancel()
        self._down.fail(ConnectionError_(f"{self.target} does not answer"))

    async def _serve(self) -> None:
        site = self._site
        try:
            if not site.up:
                raise ConnectionError_(f"cannot reach {site.name}: connection refused")
            await site.verifier.serve(ServerEnd(self._up, self._down), self._identity)
            self._down.put(None, 0)
        except SpecfleetError as error:
            self._down.put(error, 0)
        finally:
            site.links.pop(self, None)

    async def model(self) -> ModelInfo:
        return self._site.verifier.model()

    async def load(self) -> Load:
        return self._site.verifier.load()

    async def tokenizer_files(self) -> dict[str, bytes]:
        return {}

    async def close(self) -> None:
        pass


class ServerEnd:
    """The verifier's end."""

    __slots__ = ("_down", "_up")

    def __init__(self, up: Pipe, down: Pipe) -> None:
        self._up = up
        self._down = down

    def receive(self) -> Coroutine[Any, Any, VerifyRequest | None]:
        return self._up.get()

    async def send(self, message: VerifyResponse) -> None:
        self._down.put(message, size(message))
