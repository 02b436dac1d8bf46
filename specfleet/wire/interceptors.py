"""Something around every handler of a server, whatever its kind."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from specfleet.core.errors import InvalidRequest
from specfleet.wire.status import answering

Around = Callable[[Any, Any], AbstractAsyncContextManager[Any]]
"""Given a call's request (or their iterator) and context, what to enter before its handler and to leave after it."""

_KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


def wrapped(handler: Any, around: Around) -> Any:
    """`handler` (a grpc.RpcMethodHandler) within `around`, in the call's own task."""
    kind = _KINDS[handler.request_streaming, handler.response_streaming]
    return handler._replace(**{kind: _wrap(getattr(handler, kind), around)})


def _wrap(behaviour: Callable[..., Any], around: Around) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(behaviour):

        async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
            async with around(request, context), aclosing(behaviour(request, context)) as replies:
                async for reply in replies:
                    yield reply

        return streaming

    async def single(request: Any, context: Any) -> Any:
        async with around(request, context):
            return await behaviour(request, context)

    return single


class Decoding(grpc.aio.ServerInterceptor):
    """A request whose bytes are no message is its sender's fault, and told so: gRPC would call it INTERNAL."""

    async def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or handler.request_streaming:  # a stream's reader sees the DecodeError
            return handler
        decode = handler.request_deserializer

        def attempted(raw: bytes) -> Any:
            try:
                return decode(raw)
            except DecodeError:
                return _UNDECODABLE

        return wrapped(handler._replace(request_deserializer=attempted), _refused)


_UNDECODABLE = object()


@asynccontextmanager
async def _refused(request: Any, context: Any) -> AsyncIterator[None]:
    async with answering(context):
        if request is _UNDECODABLE:
            raise InvalidRequest.field("message", "is none: its bytes cannot be decoded")
    yield
