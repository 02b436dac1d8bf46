"""One request, from its body to its last byte: size and time limits on the way in, slow and leaving readers on the way out."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from specfleet.core.errors import InternalError, SpecfleetError, StreamInterrupted
from specfleet.core.generation import MAX_REQUEST_ID
from specfleet.http.errors import BadCall, body_of, headers_of, status_of
from specfleet.http.replies import encoded
from specfleet.wire.channel import MAX_MESSAGE_BYTES
from specfleet.wire.generation import IDLE_SECONDS

log = logging.getLogger(__name__)

BODY_SECONDS = 30.0
"""For a request's body to arrive."""
JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"
_REQUEST_ID = re.compile(rf"[\x21-\x7e]{{1,{MAX_REQUEST_ID}}}")


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


class Exchange:
    """One HTTP request and its answer. Its task is cancelled when the caller leaves or the server has drained."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, idle_seconds: float = IDLE_SECONDS) -> None:
        """`idle_seconds`: how long a reader may take nothing."""
        self.headers = Headers(scope=scope)
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.values: Mapping[str, str] = scope.get("path_params", {})
        self.peer = _peer(scope)
        self.state: Mapping[str, Any] = scope.get("state", {})
        self.left = False
        """The caller has gone."""
        self.status = 0
        """Of the answer, once it has begun."""
        asked = self.headers.get("x-request-id", "")
        self.request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        self._receive = receive
        self._send = send
        self._idle_seconds = idle_seconds
        self.complete = False
        """Its last byte was written."""

    async def body(self) -> bytes:
        """The whole body. Raises BadCall for one that is no JSON by its header, too large, or too slow in coming."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON:
            # Also what keeps pages of other sites out: their browsers would have to ask first.
            raise BadCall(415, "unsupported_media_type", f"content-type is {kind or 'missing'}, must be {JSON}")
        length = self.headers.get("content-length", "0")
        if int(length) > MAX_MESSAGE_BYTES:  # h11 lets only numbers through
            raise _too_large(f"{length} bytes")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._read()
        except TimeoutError:
            raise BadCall(408, "request_timeout", f"the body did not arrive within {BODY_SECONDS:g} s") from None

    async def _read(self) -> bytes:
        found = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.left = True
                raise ClientLeft
            found += message.get("body", b"")
            if len(found) > MAX_MESSAGE_BYTES:
                raise _too_large(f"more than {MAX_MESSAGE_BYTES} bytes")
            if not message.get("more_body", False):
                return bytes(found)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """While a generation runs: when the caller leaves, its task is cancelled, and ClientLeft raised. The body must have
        been read."""
        task = asyncio.current_task()
        assert task is not None
        watch = asyncio.create_task(self._watch(task))
        try:
            yield
        except asyncio.CancelledError:
            if not self.left:
                raise
            task.uncancel()
            raise ClientLeft from None
        finally:
            watch.cancel()

    async def _watch(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.left = True
        task.cancel()

    async def begin(self, status: int, kind: str, headers: Mapping[str, str] | None = None) -> None:
        """Status and headers; the body follows with `write`."""
        self.status = status
        pairs = {"content-type": kind, "x-request-id": self.request_id, **(headers or {})}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in pairs.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """A piece of the body. Raises StreamInterrupted for a reader that takes nothing, and then cuts it off: what waits for
        it holds memory here and on a verifier."""
        try:
            async with asyncio.timeout(self._idle_seconds):
                await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        except TimeoutError:
            self.abandon()
            raise StreamInterrupted(f"nothing was read for {self._idle_seconds:g} s") from None
        self.complete = last

    async def answer(
        self, status: int, content: bytes, kind: str = JSON, headers: Mapping[str, str] | None = None
    ) -> None:
        """A whole answer."""
        await self.begin(status, kind, {"content-length": str(len(content)), **(headers or {})})
        await self.write(content, last=True)

    async def fail(self, error: SpecfleetError) -> None:
        """`error` as the answer; as an event, where the answer has begun already."""
        error.request_id = error.request_id or self.request_id
        if not self.status:
            await self.answer(status_of(error), encoded(body_of(error)), headers=headers_of(error))
        elif not self.complete:
            await self.write(b"data: " + encoded(body_of(error)) + b"\n\n", last=True)

    def fault(self) -> SpecfleetError:
        """For what nobody has foreseen: logged with the request id, and no inner text in the answer. Call it while handling
        the exception."""
        log.exception("handler failed", extra={"request_id": self.request_id})
        message = f"internal error; the server's log has it under request id {self.request_id}"
        return InternalError(message, request_id=self.request_id)

    def abandon(self) -> None:
        """End the connection without waiting for whoever does not read."""
        self.left = self.complete = True
        abort = self.state.get("abort")
        if abort is not None:
            abort()


def _too_large(size: str) -> BadCall:
    return BadCall(413, "request_too_large", f"the body has {size}, at most {MAX_MESSAGE_BYTES}")


def _peer(scope: Scope) -> str:
    """As gRPC writes it, so that an identity is the same over both."""
    host, port = scope.get("client") or ("", 0)
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
