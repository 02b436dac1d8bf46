"""`grpc_server_{started,handled}_total` and `grpc_server_handling_seconds`, through one interceptor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from grpc_health.v1 import health
from prometheus_client import CollectorRegistry, Counter, Histogram

from specfleet.observability.registry import SECONDS
from specfleet.v1 import generation_pb2, verification_pb2
from specfleet.wire.interceptors import wrapped
from specfleet.wire.status import TABLE

LABELS = ("grpc_service", "grpc_method")
HEALTH = health.SERVICE_NAME
KNOWN = (generation_pb2.DESCRIPTOR, verification_pb2.DESCRIPTOR)
"""Files whose services can be found by name, since they are imported."""
CODES = ("OK", "UNKNOWN", *sorted({row.grpc.name for row in TABLE}))
"""How calls end: well, by a bug outside our handlers, or as the error table says."""


class GrpcServerMetrics(grpc.aio.ServerInterceptor):
    def __init__(self, registry: CollectorRegistry, services: Sequence[str] = ()) -> None:
        """The series of `services`, and of health, are there from the start, with every code of the error table."""
        self._started = Counter("grpc_server_started", "Calls begun.", LABELS, registry=registry)
        self._handled = Counter(
            "grpc_server_handled", "Calls ended, by code.", (*LABELS, "grpc_code"), registry=registry
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds", "Duration of calls.", LABELS, buckets=SECONDS, registry=registry
        )
        for service in (*services, HEALTH) if services else ():
            self._zero(service)

    def _zero(self, service: str) -> None:
        for method in descriptor_pool.Default().FindServiceByName(service).methods:
            self._started.labels(service, method.name)
            self._seconds.labels(service, method.name)
            for code in CODES:
                self._handled.labels(service, method.name, code)

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        _, service, method = details.method.split("/")
        return wrapped(handler, partial(self._counted, service, method))

    @asynccontextmanager
    async def _counted(self, service: str, method: str, _request: Any, context: Any) -> AsyncIterator[None]:
        self._started.labels(service, method).inc()
        start = time.monotonic()
        code = "OK"
        try:
            yield
        except grpc.aio.AbortError:
            code = _name(context)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = "CANCELLED"
            raise
        except BaseException:
            code = "UNKNOWN"
            raise
        finally:
            self._handled.labels(service, method, code).inc()
            self._seconds.labels(service, method).observe(time.monotonic() - start)


def _name(context: Any) -> str:
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else str(code)
