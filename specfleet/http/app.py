"""The paths of a server. What a request asks for is read in `requests`, what is answered is made in `replies`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from importlib.resources import files
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from specfleet.core.errors import StreamInterrupted, Unavailable, UnknownModel
from specfleet.core.generation import Completed, Event, Generator, Started, Tokens
from specfleet.http import replies, requests
from specfleet.http.endpoint import Endpoint, House
from specfleet.http.errors import BadCall
from specfleet.http.exchange import EVENTS, Exchange
from specfleet.http.fields import parse
from specfleet.http.replies import DONE, Answer, Piece, encoded, sse

HTML = "text/html; charset=utf-8"
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
EVENT_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
OTHER = "other"
"""Route of what has no path here, in metrics."""
Reader = Callable[[dict[str, Any], str], requests.Asked]


class App:
    """An ASGI application around one Generator. `ready` is the daemon's to set."""

    def __init__(
        self, generator: Generator, piece: Piece, registry: CollectorRegistry, house: House, *, page: bool = False
    ) -> None:
        """`page`: show one at /."""
        self.ready = False
        self._generator = generator
        self._piece = piece
        self._registry = registry
        self._created = int(time.time())
        endpoint = partial(Endpoint, house)
        # Who probes has no token, nor has a browser before its user gave it one.
        everybody: dict[str, Any] = {"guarded": False, "awaited": False}
        endpoints = {
            "/health": endpoint("/health", self._health, **everybody),
            "/ready": endpoint("/ready", self._say_ready, **everybody),
            "/metrics": endpoint("/metrics", self._say_metrics, awaited=False),
            "/v1/models": endpoint("/v1/models", self._models),
            "/v1/models/{model:path}": endpoint("/v1/models/{model}", self._model),
            "/v1/completions": endpoint("/v1/completions", partial(self._generate, requests.completion), "POST"),
            "/v1/chat/completions": endpoint(
                "/v1/chat/completions", partial(self._generate, requests.chat_completion), "POST"
            ),
        }
        if page:
            self._page = files("specfleet.http").joinpath("page.html").read_bytes()
            endpoints["/"] = endpoint("/", self._show_page, **everybody)
        nothing = endpoint(OTHER, self._nothing, "", awaited=False)
        self._router = Router(
            [Route(path, one) for path, one in endpoints.items()], redirect_slashes=False, default=nothing
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._router(scope, receive, send)

    # --- what is answered at once ------------------------------------------------------------------------------------

    async def _nothing(self, exchange: Exchange) -> None:
        raise BadCall(404, "not_found", f"there is nothing at {exchange.path[:200]!r}; see /v1/models")

    async def _show_page(self, exchange: Exchange) -> None:
        await exchange.answer(200, self._page, HTML, PAGE_HEADERS)

    async def _health(self, exchange: Exchange) -> None:
        await exchange.answer(200, b'{"status":"ok"}')

    async def _say_ready(self, exchange: Exchange) -> None:
        if not self.ready:
            raise Unavailable("not ready: starting, stopping, or stuck", retry_after=1.0)
        await exchange.answer(200, b'{"status":"ready"}')

    async def _say_metrics(self, exchange: Exchange) -> None:
        encode, kind = choose_encoder(exchange.headers.get("accept", ""))
        await exchange.answer(200, encode(self._registry), kind)

    async def _models(self, exchange: Exchange) -> None:
        await exchange.answer(200, encoded(replies.models(await self._generator.model(), self._created)))

    async def _model(self, exchange: Exchange) -> None:
        info, asked = await self._generator.model(), exchange.values["model"]
        if asked != info.name:
            raise UnknownModel(f"model {asked[:200]!r} is not served here, {info.name!r} is")
        await exchange.answer(200, encoded(replies.model(info, self._created)))

    # --- generations -------------------------------------------------------------------------------------------------

    async def _generate(self, read: Reader, exchange: Exchange) -> None:
        asked = read(parse(await exchange.body()), exchange.request_id)
        # Closing at once: a request that is cancelled frees its pages within one step.
        async with exchange.watched(), aclosing(self._generator.generate(asked.request)) as events:  # type: ignore[type-var]
            answer = await self._started(asked, events)
            if asked.stream:
                await _stream(exchange, answer, events)
            else:
                await _collect(exchange, answer, events)
        if not exchange.complete:
            raise StreamInterrupted("the generation broke off; ask again")

    async def _started(self, asked: requests.Asked, events: AsyncIterator[Event]) -> Answer:
        """Refusals come before the first event, and so with a status of their own."""
        first = await anext(events)
        assert isinstance(first, Started), "a generation begins with Started"
        return Answer(asked, first, int(time.time()), self._piece)


async def _stream(exchange: Exchange, answer: Answer, events: AsyncIterator[Event]) -> None:
    await exchange.begin(200, EVENTS, EVENT_HEADERS)
    async for event in events:
        if isinstance(event, Tokens):
            chunks = answer.chunks(event)
            if chunks:
                await exchange.write(b"".join(map(sse, chunks)))
        elif isinstance(event, Completed):
            await exchange.write(b"".join(map(sse, answer.last(event))) + DONE, last=True)


async def _collect(exchange: Exchange, answer: Answer, events: AsyncIterator[Event]) -> None:
    async for event in events:
        if isinstance(event, Tokens):
            answer.add(event)
        elif isinstance(event, Completed):
            await exchange.answer(200, encoded(answer.whole(event)))
