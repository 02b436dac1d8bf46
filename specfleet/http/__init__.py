"""The OpenAI-compatible HTTP of both daemons: a Generator behind Starlette and uvicorn, on the daemon's own event loop.

fields, requests    JSON body -> what was asked          (pure)
replies             events -> JSON                       (pure)
errors              typed error -> status and body       (pure)
app, exchange       routes; one request from its body to its last byte
connection, server  sockets, TLS, drain
page.html           what GET / shows
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from specfleet.core.errors import ConfigurationError
from specfleet.core.extras import missing

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from specfleet.core.config import DaemonConfig
    from specfleet.core.generation import Generator
    from specfleet.http.replies import Piece
    from specfleet.wire.auth import Guard
    from specfleet.wire.tls import ServerCertificate


class Serving(Protocol):
    """What a daemon does with its HTTP server, be there one or not."""

    address: str

    async def start(self, generator: Generator, piece: Piece, *, page: bool = False) -> None: ...

    async def ready(self, ready: bool) -> None: ...

    async def drain(self, seconds: float) -> None: ...


class NoServer:
    """For daemons that were told to have none."""

    address = "off"

    async def start(self, generator: Generator, piece: Piece, *, page: bool = False) -> None:
        pass

    async def ready(self, ready: bool) -> None:
        pass

    async def drain(self, seconds: float) -> None:
        pass


def http_server(
    config: DaemonConfig, registry: CollectorRegistry, guard: Guard, certificate: ServerCertificate | None
) -> Serving:
    """The server that the settings ask for, bound to its address. Raises ConfigurationError, also for a missing extra."""
    if not config.http:
        return NoServer()
    for module in ("starlette", "uvicorn"):
        if missing(module):
            raise ConfigurationError(
                f"--http {config.http} needs {module}: pip install 'specfleet[http]', or say --http '' for none"
            )
    from specfleet.http.server import HttpServer

    return HttpServer(config.http, registry, guard, certificate, insecure=config.insecure)
