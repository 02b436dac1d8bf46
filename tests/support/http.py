"""A Generator behind a real HTTP server of this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from specfleet.core.generation import Generator
from specfleet.http.server import HttpServer
from specfleet.wire.auth import Guard
from specfleet.wire.server import ANYBODY
from specfleet.wire.tls import ServerCertificate


@asynccontextmanager
async def http_serving(
    generator: Generator, guard: Guard = ANYBODY, certificate: ServerCertificate | None = None, *, page: bool = False
) -> AsyncIterator[HttpServer]:
    """Ready; tokens have their number as text."""
    server = HttpServer("127.0.0.1:0", CollectorRegistry(), guard, certificate)
    await server.start(generator, lambda token_id: f"{token_id} ", page=page)
    await server.ready(True)
    try:
        yield server
    finally:
        await server.drain(0.0)
