"""What every path has around its handler: counting, limits, who may call, and errors that become answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.types import Receive, Scope, Send

from specfleet.core.errors import Overloaded, SpecfleetError
from specfleet.http.errors import BadCall
from specfleet.http.exchange import ClientLeft, Exchange
from specfleet.http.guests import check_host
from specfleet.observability.http_server import HttpServerMetrics
from specfleet.wire.auth import Guard, Presented, handling
from specfleet.wire.drain import Running
from specfleet.wire.server import MAX_CALLS

Handler = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class House:
    """What all paths of a server share."""

    guard: Guard
    metrics: HttpServerMetrics
    names_matter: bool
    """See `guests.check_host`."""
    running: Running = field(default_factory=Running)


class Endpoint:
    """An ASGI application for one path."""

    def __init__(
        self,
        house: House,
        path: str,
        handler: Handler,
        method: str = "GET",
        *,
        guarded: bool = True,
        awaited: bool = True,
    ) -> None:
        """`guarded`: callers need what the guard asks for. `awaited`: stopping waits for it. No `method`: any."""
        self._house = house
        self._path = path
        self._handler = handler
        self._method = method
        self._guarded = guarded
        self._awaited = awaited
        house.metrics.expect(path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Everything ends in an answer, unless its reader is gone."""
        exchange = Exchange(scope, receive, send)
        with self._house.metrics.counted(self._path, lambda: exchange.status):
            try:
                async with self._house.running.counted(lambda: exchange.left, awaited=self._awaited):
                    await self._serve(exchange)
            except ClientLeft:
                pass
            except SpecfleetError as error:
                await _told(exchange, error)
            except Exception:  # noqa: BLE001 (the last resort: our own fault is answered, too)
                await _told(exchange, exchange.fault())

    async def _serve(self, exchange: Exchange) -> None:
        house = self._house
        if house.names_matter:
            check_host(exchange.headers.getlist("host"))
        if len(house.running) > MAX_CALLS:
            raise Overloaded(f"{MAX_CALLS} requests run here already", retry_after=1.0)
        if self._guarded:
            handling(house.guard.identity(_presented(exchange)))
        if self._method and exchange.method not in (self._method, "HEAD" if self._method == "GET" else ""):
            raise BadCall(
                405, "method_not_allowed", f"{exchange.method[:20]} is not for {self._path}, {self._method} is"
            )
        await self._handler(exchange)


def _presented(exchange: Exchange) -> Presented:
    names = exchange.state.get("certificate", ())
    return Presented(exchange.peer, tuple(exchange.headers.getlist("authorization")), names)


async def _told(exchange: Exchange, error: SpecfleetError) -> None:
    """Answer with `error`, if there is anybody to read it."""
    try:
        if not exchange.left:
            await exchange.fail(error)
    except SpecfleetError:
        pass
