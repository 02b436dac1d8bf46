"""What both daemons' metrics share: buckets, build info, the port they are scraped from."""

from __future__ import annotations

from contextlib import AsyncExitStack
from importlib import metadata
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Info, ProcessCollector, make_wsgi_app, start_http_server

from specfleet.core.errors import ConfigurationError
from specfleet.core.trace import Tracer
from specfleet.observability.trace import beside

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Latency buckets begin at 0.5 ms: a step of a small model is a few milliseconds."""

COUNTS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def build_info(registry: CollectorRegistry, prefix: str, **facts: str) -> None:
    """`<prefix>_build_info`: constant 1, the facts as labels."""
    version = metadata.version("specfleet")
    Info(f"{prefix}_build", "Software that exports these metrics.", registry=registry).info(
        {"version": version, **facts}
    )


class MetricsServer:
    """Serves a registry at http://HOST:PORT/metrics from a thread of its own; beside it, at /trace, what a tracer has kept."""

    def __init__(self, registry: CollectorRegistry, listen: str, tracer: Tracer | None = None) -> None:
        host, _, port = listen.rpartition(":")
        try:
            self._server: WSGIServer = start_http_server(int(port), host.strip("[]"), registry=registry)[0]
        except OSError as error:
            raise ConfigurationError(
                f"cannot serve metrics on {listen}: {error.strerror or error}; choose another port, or 0 for any free one"
            ) from None
        if tracer is not None:
            self._server.set_app(beside(make_wsgi_app(registry), tracer))
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def serve_metrics(registry: CollectorRegistry, listen: str, stack: AsyncExitStack, tracer: Tracer | None = None) -> str:
    """Serve until `stack` unwinds; returns the real address, or "off" for an empty `listen`. Raises ConfigurationError."""
    if not listen:
        return "off"
    ProcessCollector(registry=registry)  # memory, processor time, open files; nothing where there is no /proc
    server = MetricsServer(registry, listen, tracer)
    stack.callback(server.close)
    return server.address
