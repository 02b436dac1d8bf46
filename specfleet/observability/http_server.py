"""`http_server_{started,handled}_total` and `http_server_handling_seconds`: for HTTP what the gRPC server's metrics say.
A stream's code is the one it began with; 499 where the caller left before there was one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram

from specfleet.observability.registry import SECONDS
from specfleet.wire.status import TABLE

LEFT = 499
CODES = (200, LEFT, *sorted({row.http for row in TABLE} - {LEFT}))
"""How requests end: well, with nobody there, or as the error table says."""


class HttpServerMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("http_route",)
        self._started = Counter("http_server_started", "Requests begun.", labels, registry=registry)
        self._handled = Counter(
            "http_server_handled", "Requests ended, by code.", (*labels, "http_code"), registry=registry
        )
        self._seconds = Histogram(
            "http_server_handling_seconds", "Duration of requests.", labels, buckets=SECONDS, registry=registry
        )

    def expect(self, route: str) -> None:
        """Its series exist from the start, at zero."""
        self._started.labels(route)
        self._seconds.labels(route)
        for code in CODES:
            self._handled.labels(route, str(code))

    @contextmanager
    def counted(self, route: str, code: Callable[[], int]) -> Iterator[None]:
        """Around one request. `route`: its pattern, never the path itself; `code`: the answer's, 0 where there is none."""
        self._started.labels(route).inc()
        start = time.monotonic()
        try:
            yield
        finally:
            self._handled.labels(route, str(code() or LEFT)).inc()
            self._seconds.labels(route).observe(time.monotonic() - start)
