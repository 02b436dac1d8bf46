"""`grpc_server_{started,handled}_total` and `grpc_server_handling_seconds`, through one interceptor."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry, Counter, Histogram

from specfleet.observability.registry import SECONDS

LABELS = ("grpc_service", "grpc_method")


class GrpcServerMetrics(grpc.aio.ServerInterceptor):
    def __init__(self, registry: CollectorRegistry) -> None:
        self._started = Counter("grpc_server_started", "Calls begun.", LABELS, registry=registry)
        self._handled = Counter(
            "grpc_server_handled", "Calls ended, by code.", (*LABELS, "grpc_code"), registry=registry
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds", "Duration of calls.", LABELS, buckets=SECONDS, registry=registry
        )

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        _, service, method = details.method.split("/")
        kind = {
            (False, False): "unary_unary",
            (False, True): "unary_stream",
            (True, False): "stream_unary",
            (True, True): "stream_stream",
        }[handler.request_streaming, handler.response_streaming]
        return handler._replace(**{kind: self._wrap(getattr(handler, kind), service, method)})

    def _wrap(self, behaviour: Callable[..., Any], service: str, method: str) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(behaviour):

            async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
                with self._counted(context, service, method):
                    async with aclosing(behaviour(request, context)) as replies:
                        async for reply in replies:
                            yield reply

            return streaming

        async def single(request: Any, context: Any) -> Any:
            with self._counted(context, service, method):
                return await behaviour(request, context)

        return single

    @contextmanager
    def _counted(self, context: Any, service: str, method: str) -> Iterator[None]:
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
