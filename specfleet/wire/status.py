"""The error table, read in both directions: typed error -> gRPC status with details, gRPC status -> typed error.

HTTP codes stand in the same table, so that a condition has one row. A row is found by an error's class going out; coming in,
by the `reason` that our own servers send, else by the gRPC code alone.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyProto
from google.protobuf.message import DecodeError

from specfleet.core import errors
from specfleet.core.errors import SpecfleetError
from specfleet.v1 import errors_pb2
from specfleet.wire.unreachable import why

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "specfleet"
MAX_MESSAGE_BYTES = 1024
"""Longest error text on the wire. It travels twice in headers, of which gRPC takes 8 kB and drops the call beyond."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    error: type[SpecfleetError]
    grpc: grpc.StatusCode
    http: int


TABLE: tuple[Row, ...] = (
    Row(errors.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT, 400),
    Row(errors.PromptTooLong, grpc.StatusCode.INVALID_ARGUMENT, 400),
    Row(errors.ModelMismatch, grpc.StatusCode.FAILED_PRECONDITION, 409),
    Row(errors.UnknownModel, grpc.StatusCode.FAILED_PRECONDITION, 404),
    Row(errors.AuthenticationFailed, grpc.StatusCode.UNAUTHENTICATED, 401),
    Row(errors.PermissionDenied, grpc.StatusCode.PERMISSION_DENIED, 403),
    Row(errors.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    Row(errors.QuotaExceeded, grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    Row(errors.Unavailable, grpc.StatusCode.UNAVAILABLE, 503),
    Row(errors.ConnectionError_, grpc.StatusCode.UNAVAILABLE, 503),
    Row(errors.DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    Row(errors.Cancelled, grpc.StatusCode.CANCELLED, 499),
    Row(errors.PositionGap, grpc.StatusCode.OUT_OF_RANGE, 400),
    Row(errors.StreamInterrupted, grpc.StatusCode.ABORTED, 503),
    Row(errors.InternalError, grpc.StatusCode.INTERNAL, 500),
)

_BY_CLASS = {row.error: row for row in TABLE}
_BY_REASON = {row.error.code: row for row in TABLE}
_BY_CODE = {row.grpc: row for row in reversed(TABLE)}
_BY_CODE[grpc.StatusCode.UNAVAILABLE] = _BY_CLASS[errors.ConnectionError_]
_BY_CODE[grpc.StatusCode.UNIMPLEMENTED] = _BY_CLASS[errors.ModelMismatch]
_BY_CODE[grpc.StatusCode.NOT_FOUND] = _BY_CLASS[errors.UnknownModel]


def row_of(error: SpecfleetError) -> Row:
    """The row of the nearest class; an error without one is our fault."""
    for cls in type(error).__mro__:
        if cls in _BY_CLASS:
            return _BY_CLASS[cls]
    return _BY_CLASS[errors.InternalError]


def to_trailers(error: SpecfleetError) -> tuple[tuple[str, bytes], ...]:
    """The details trailer: ErrorInfo always, BadRequest, RetryInfo and RequestInfo where they apply."""
    row = row_of(error)
    details: list[tuple[str, Any]] = [
        ("ErrorInfo", errors_pb2.ErrorInfo(reason=row.error.code, domain=DOMAIN, metadata=error.details))
    ]
    if isinstance(error, errors.InvalidRequest):
        violation = errors_pb2.BadRequest.FieldViolation(
            field=error.details.get("field", ""), description=clipped(error.message)
        )
        details.append(("BadRequest", errors_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after is not None:
        retry = errors_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(("RetryInfo", retry))
    if error.request_id:
        details.append(("RequestInfo", errors_pb2.RequestInfo(request_id=error.request_id)))
    packed = [
        AnyProto(type_url=f"type.googleapis.com/google.rpc.{name}", value=m.SerializeToString()) for name, m in details
    ]
    status = errors_pb2.ErrorStatus(code=row.grpc.value[0], message=clipped(error.message), details=packed)
    return ((DETAILS_KEY, status.SerializeToString()),)


def clipped(message: str) -> str:
    """`message`, shortened in the middle where it echoes more than headers can carry."""
    raw = message.encode()
    if len(raw) <= MAX_MESSAGE_BYTES:
        return message
    half = MAX_MESSAGE_BYTES // 2 - 2
    return f"{raw[:half].decode(errors='ignore')}…{raw[-half:].decode(errors='ignore')}"


def from_status(
    code: grpc.StatusCode, message: str, trailers: Sequence[tuple[str, str | bytes]] | None = None, *, peer: str = ""
) -> SpecfleetError:
    """The typed error for a failed call. `peer` is named where no server answered."""
    found = _details(trailers or ())
    info = found.get("ErrorInfo")
    row = _BY_REASON.get(info.reason) if info is not None and info.domain == DOMAIN else None
    row = row or _BY_CODE.get(code, _BY_CLASS[errors.InternalError])
    if info is None:
        message = _unanswered(code, message, peer or "the server")
    retry, request = found.get("RetryInfo"), found.get("RequestInfo")
    return row.error(
        message,
        details=dict(info.metadata) if info is not None else None,
        request_id=request.request_id if request is not None else "",
        retry_after=retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9 if retry is not None else None,
    )


def _unanswered(code: grpc.StatusCode, message: str, peer: str) -> str:
    """What gRPC itself said, in words that name the server and the way out."""
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"cannot reach {peer}: {why(message)}"
    if message == "Method not found!":
        return (
            f"{peer} is no server of that kind: it knows no such call; drafters (port 7700 by default) are asked for texts, "
            "verifiers (7600) for texts and verdicts"
        )
    return f"{peer} gave no answer in time; is it busy, or stuck?" if message == "Deadline Exceeded" else message


def from_rpc_error(error: grpc.aio.AioRpcError, *, peer: str = "") -> SpecfleetError:
    """The typed error for what grpc.aio raised."""
    trailers = [(str(key), value) for key, value in (error.trailing_metadata() or ())]
    return from_status(error.code(), error.details() or error.code().name, trailers, peer=peer)


_DETAIL_TYPES: dict[str, Any] = {
    "ErrorInfo": errors_pb2.ErrorInfo,
    "BadRequest": errors_pb2.BadRequest,
    "RetryInfo": errors_pb2.RetryInfo,
    "RequestInfo": errors_pb2.RequestInfo,
}


def _details(trailers: Sequence[tuple[str, str | bytes]]) -> dict[str, Any]:
    """What the details trailer holds, by type. A foreign server may put anything there: what cannot be read is left out."""
    raw = next((value for key, value in trailers if key == DETAILS_KEY), None)
    if not isinstance(raw, bytes):
        return {}
    found: dict[str, Any] = {}
    try:
        for packed in errors_pb2.ErrorStatus.FromString(raw).details:
            kind = packed.type_url.rpartition(".")[2]
            if kind in _DETAIL_TYPES:
                found[kind] = _DETAIL_TYPES[kind].FromString(packed.value)
    except DecodeError:
        log.debug("unreadable error details")
    return found


@asynccontextmanager
async def answering(context: grpc.aio.ServicerContext[Any, Any], request_id: str = "") -> AsyncIterator[None]:
    """Server side: whatever a handler raises becomes a status. Our own faults are logged with the request id (made up where
    the call has none) and leave no inner text on the wire."""
    try:
        yield
    except SpecfleetError as error:
        error.request_id = error.request_id or request_id
        await abort(context, error)
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except Exception:
        request_id = request_id or uuid.uuid4().hex
        log.exception("handler failed", extra={"request_id": request_id})
        message = f"internal error; the server's log has it under request id {request_id}"
        await abort(context, errors.InternalError(message, request_id=request_id))


async def begin(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Send the headers of a stream. gRPC would send them with the first message, and once more with an error that comes while
    that one is on its way; the second time fails, and the caller never gets the error."""
    await context.send_initial_metadata(())


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: SpecfleetError) -> None:
    """End a call with the status and details of `error`. Raises AbortError, for grpc to see."""
    await context.abort(row_of(error).grpc, clipped(error.message), to_trailers(error))
