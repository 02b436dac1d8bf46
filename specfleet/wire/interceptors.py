"""Something around every handler of a server, whatever its kind."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

Around = Callable[[Any], AbstractAsyncContextManager[Any]]
"""Given a call's context, what to enter before its handler and to leave after it."""

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
            async with around(context), aclosing(behaviour(request, context)) as replies:
                async for reply in replies:
                    yield reply

        return streaming

    async def single(request: Any, context: Any) -> Any:
        async with around(context):
            return await behaviour(request, context)

    return single
