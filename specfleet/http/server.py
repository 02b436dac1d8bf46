"""A listening HTTP server on the daemon's own event loop: `bind`, `start`, `ready(True)`, later `drain(seconds)`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterator

import uvicorn
from prometheus_client import CollectorRegistry

from specfleet.core.address import is_loopback
from specfleet.core.generation import Generator
from specfleet.http.app import App
from specfleet.http.connection import Connection
from specfleet.http.endpoint import House
from specfleet.http.replies import Piece
from specfleet.observability.http_server import HttpServerMetrics
from specfleet.wire.auth import Guard
from specfleet.wire.server import TELL_SECONDS, bound, check_listen
from specfleet.wire.tls import ServerCertificate

KEEP_SECONDS = 75
"""How long a connection may wait for its next request."""
MAX_HEAD_BYTES = 64 * 1024


class HttpServer:
    """The OpenAI-compatible side of a daemon: same guard, same certificate, same limits, same end as its gRPC server's."""

    def __init__(
        self,
        listen: str,
        registry: CollectorRegistry,
        guard: Guard,
        certificate: ServerCertificate | None = None,
        *,
        insecure: bool = False,
    ) -> None:
        """Takes HOST:PORT (port 0: any free one) before what takes long. Raises ConfigurationError, as Server.bind does."""
        check_listen(listen, encrypted=certificate is not None, insecure=insecure)
        self._socket: socket.socket = bound(listen)
        host = listen.rpartition(":")[0]
        self.address = f"{host}:{self._socket.getsockname()[1]}"
        self._registry = registry
        # Who listens for this machine only and knows nobody by a token must beware of pages of other sites.
        names_matter = guard.tokens is None and not guard.mutual and is_loopback(listen)
        self._house = House(guard, HttpServerMetrics(registry), names_matter)
        self._certificate = certificate
        self._app: App | None = None
        self._server: _Quiet | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self, generator: Generator, piece: Piece, *, page: bool = False) -> None:
        """Answer requests: alive, not ready yet. `piece`: the text of a token; `page`: show one at /."""
        self._app = App(generator, piece, self._registry, self._house, page=page)
        certificate = self._certificate
        config = uvicorn.Config(
            self._app,
            http=Connection,
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # what goes wrong is answered, counted and, where it is ours, logged by Endpoint
            access_log=False,
            proxy_headers=False,
            server_header=False,
            reset_contextvars=True,
            timeout_keep_alive=KEEP_SECONDS,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ssl_context_factory=(lambda _config, _default: certificate.context()) if certificate else None,
        )
        self._server = _Quiet(config)
        self._serving = asyncio.create_task(self._server.serve([self._socket]))
        up = asyncio.create_task(self._server.up.wait())
        await asyncio.wait({up, self._serving}, return_when=asyncio.FIRST_COMPLETED)
        if self._serving.done():
            self._serving.result()

    async def ready(self, ready: bool) -> None:
        assert self._app is not None, "start first"
        self._app.ready = ready

    async def drain(self, seconds: float) -> None:
        """As Server.drain: not ready, no new requests; those that run have `seconds`, the rest are told to move."""
        if self._server is None or self._serving is None:
            self._socket.close()
            return
        await self.ready(False)
        self._server.config.timeout_graceful_shutdown = math.ceil(seconds + TELL_SECONDS)
        self._server.should_exit = True
        await self._house.running.finish(seconds)
        done, _ = await asyncio.wait({self._serving}, timeout=TELL_SECONDS)
        if not done:  # somebody does not read what he is told
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()
            await asyncio.wait({self._serving}, timeout=TELL_SECONDS)


class _Quiet(uvicorn.Server):
    """Leaves signals to the daemon, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
