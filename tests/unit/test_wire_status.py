"""The error table, read in both directions."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyProto
from google.rpc import error_details_pb2, status_pb2

from specfleet.core import errors
from specfleet.core.errors import SpecfleetError
from specfleet.v1 import errors_pb2
from specfleet.wire.status import (
    DETAILS_KEY,
    DOMAIN,
    MAX_MESSAGE_BYTES,
    TABLE,
    clipped,
    from_status,
    row_of,
    to_trailers,
)

CLASSES = [row.error for row in TABLE]
CODE = grpc.StatusCode


def there_and_back(error: SpecfleetError) -> SpecfleetError:
    return from_status(row_of(error).grpc, error.message, to_trailers(error), peer="host:1")


def standard(error: SpecfleetError) -> dict[str, AnyProto]:
    """The trailer's details as google.rpc's own messages pack them, by full name."""
    ((key, raw),) = to_trailers(error)
    assert key == DETAILS_KEY
    status = status_pb2.Status.FromString(raw)
    assert (row_of(error).grpc.value[0], error.message) == (status.code, status.message)
    return {packed.TypeName(): packed for packed in status.details}


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_arrives_as_it_was_sent(cls: type[SpecfleetError]) -> None:
    """Class, message, details, retry_after and request id survive the way out and back."""
    sent = cls("what happened", details={"field": "prompt", "limit": "5"}, request_id="r-1", retry_after=1.5)
    got = there_and_back(sent)
    assert cls is type(got)
    assert (sent.message, sent.details, sent.request_id, 1.5) == (
        got.message,
        got.details,
        got.request_id,
        got.retry_after,
    )


@pytest.mark.parametrize("cls", CLASSES)
def test_what_an_error_does_not_say_stays_unsaid(cls: type[SpecfleetError]) -> None:
    """No retry_after and no request id arrive as none."""
    got = there_and_back(cls("what happened"))
    assert (cls, "what happened", {}, "", None) == (
        type(got),
        got.message,
        got.details,
        got.request_id,
        got.retry_after,
    )


def test_every_error_has_a_row() -> None:
    """Each class of the tree has its own row, or that of its nearest parent; what no client can mend is INTERNAL."""

    def descendants(cls: type[SpecfleetError]) -> list[type[SpecfleetError]]:
        return [cls, *(one for child in cls.__subclasses__() for one in descendants(child))]

    ours = [cls for cls in descendants(SpecfleetError) if cls.__module__ == errors.__name__]
    without = {cls for cls in ours if row_of(cls("x")).error is not cls}
    internal = {SpecfleetError, errors.RequestRejected, errors.ConfigurationError, errors.ModelLoadError}
    assert internal == without
    assert {errors.InternalError} == {row_of(cls("x")).error for cls in without}

    class OurOwnKind(errors.PromptTooLong):
        pass

    assert errors.PromptTooLong is row_of(OurOwnKind("x")).error


@pytest.mark.parametrize(
    ("cls", "code", "http"),
    [
        (errors.InvalidRequest, CODE.INVALID_ARGUMENT, 400),
        (errors.PromptTooLong, CODE.INVALID_ARGUMENT, 400),
        (errors.ModelMismatch, CODE.FAILED_PRECONDITION, 409),
        (errors.UnknownModel, CODE.FAILED_PRECONDITION, 404),
        (errors.AuthenticationFailed, CODE.UNAUTHENTICATED, 401),
        (errors.PermissionDenied, CODE.PERMISSION_DENIED, 403),
        (errors.QuotaExceeded, CODE.RESOURCE_EXHAUSTED, 429),
        (errors.Overloaded, CODE.RESOURCE_EXHAUSTED, 429),
        (errors.Unavailable, CODE.UNAVAILABLE, 503),
        (errors.ConnectionError_, CODE.UNAVAILABLE, 503),
        (errors.DeadlineExceeded, CODE.DEADLINE_EXCEEDED, 504),
        (errors.PositionGap, CODE.OUT_OF_RANGE, 400),
        (errors.InternalError, CODE.INTERNAL, 500),
    ],
)
def test_codes_are_those_of_the_contract(cls: type[SpecfleetError], code: grpc.StatusCode, http: int) -> None:
    """The published table of conditions, gRPC codes and HTTP codes."""
    assert (code, http) == (row_of(cls("x")).grpc, row_of(cls("x")).http)


def test_rows_are_distinct() -> None:
    """A reason names one class only, and every HTTP code is that of an error."""
    assert len(TABLE) == len({row.error for row in TABLE}) == len({row.error.code for row in TABLE})
    assert all(400 <= row.http < 600 and row.grpc is not CODE.OK for row in TABLE)


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (CODE.UNKNOWN, errors.InternalError),
        (CODE.DATA_LOSS, errors.InternalError),
        (CODE.ALREADY_EXISTS, errors.InternalError),
        (CODE.INTERNAL, errors.InternalError),
        (CODE.INVALID_ARGUMENT, errors.InvalidRequest),
        (CODE.OUT_OF_RANGE, errors.PositionGap),
        (CODE.FAILED_PRECONDITION, errors.ModelMismatch),
        (CODE.UNIMPLEMENTED, errors.ModelMismatch),
        (CODE.NOT_FOUND, errors.UnknownModel),
        (CODE.UNAUTHENTICATED, errors.AuthenticationFailed),
        (CODE.PERMISSION_DENIED, errors.PermissionDenied),
        (CODE.RESOURCE_EXHAUSTED, errors.Overloaded),
        (CODE.UNAVAILABLE, errors.ConnectionError_),
        (CODE.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (CODE.CANCELLED, errors.Cancelled),
        (CODE.ABORTED, errors.StreamInterrupted),
    ],
)
def test_foreign_servers_are_understood_by_their_code(code: grpc.StatusCode, cls: type[SpecfleetError]) -> None:
    """A proxy or a foreign server sends no reason of ours: the code alone decides."""
    got = from_status(code, "said the proxy")
    assert cls is type(got)
    assert "said the proxy" in got.message


def test_every_grpc_code_is_some_error() -> None:
    """No code whatever raises anything else or nothing."""
    for code in CODE:
        assert isinstance(from_status(code, "x"), SpecfleetError)


def test_where_no_server_answered_the_address_is_named() -> None:
    """An unreachable server is told from one that answered UNAVAILABLE itself."""
    nobody = from_status(CODE.UNAVAILABLE, "connection refused", peer="edge-7:7700")
    assert "cannot reach edge-7:7700: connection refused; is it running there, and is the address right?" == str(nobody)
    answered = there_and_back(errors.Unavailable("draining; try another verifier"))
    assert (errors.Unavailable, "draining; try another verifier") == (type(answered), str(answered))


def test_a_reason_counts_only_in_our_domain() -> None:
    """Another system's reason that happens to be spelled like one of ours decides nothing."""
    info = errors_pb2.ErrorInfo(reason="quota_exceeded", domain="example.com", metadata={"a": "b"})
    packed = AnyProto(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=info.SerializeToString())
    status = errors_pb2.ErrorStatus(code=5, message="x", details=[packed])
    got = from_status(CODE.NOT_FOUND, "x", ((DETAILS_KEY, status.SerializeToString()),))
    assert (errors.UnknownModel, {"a": "b"}) == (type(got), got.details)


def test_a_reason_of_a_newer_server_falls_back_to_its_code() -> None:
    """An older client gets the nearest error it knows."""
    info = errors_pb2.ErrorInfo(reason="too_purple", domain=DOMAIN)
    packed = AnyProto(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=info.SerializeToString())
    status = errors_pb2.ErrorStatus(code=3, message="x", details=[packed])
    trailers = ((DETAILS_KEY, status.SerializeToString()),)
    assert errors.InvalidRequest is type(from_status(CODE.INVALID_ARGUMENT, "x", trailers))


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"", "a text"])
def test_unreadable_details_are_left_out(raw: bytes | str) -> None:
    """Whatever a foreign server puts into the trailer, the code still decides."""
    assert errors.Overloaded is type(from_status(CODE.RESOURCE_EXHAUSTED, "x", ((DETAILS_KEY, raw),)))


def test_an_unreadable_detail_is_left_out() -> None:
    """So are details that claim a type they are not, and a delay beyond what a duration may be is no reason to raise."""
    packed = AnyProto(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff\xff")
    status = errors_pb2.ErrorStatus(code=8, details=[packed])
    got = from_status(CODE.RESOURCE_EXHAUSTED, "x", ((DETAILS_KEY, status.SerializeToString()),))
    assert (errors.Overloaded, None) == (type(got), got.retry_after)
    retry = errors_pb2.RetryInfo()
    retry.retry_delay.seconds, retry.retry_delay.nanos = 2**62, 5
    packed = AnyProto(type_url="type.googleapis.com/google.rpc.RetryInfo", value=retry.SerializeToString())
    status = errors_pb2.ErrorStatus(code=8, details=[packed])
    got = from_status(CODE.RESOURCE_EXHAUSTED, "x", ((DETAILS_KEY, status.SerializeToString()),))
    assert got.retry_after == 2.0**62


def test_the_trailer_is_that_of_google_rpc() -> None:
    """Any gRPC client reads the details with the standard messages; ours are wire-compatible copies."""
    error = errors.PromptTooLong("too long", details={"field": "prompt"}, request_id="r-1", retry_after=0.25)
    found = standard(error)
    assert {f"google.rpc.{name}" for name in ("ErrorInfo", "BadRequest", "RetryInfo", "RequestInfo")} == set(found)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, request = error_details_pb2.RetryInfo(), error_details_pb2.RequestInfo()
    for message in (info, bad, retry, request):
        assert found[message.DESCRIPTOR.full_name].Unpack(message)
    assert ("prompt_too_long", "specfleet", {"field": "prompt"}) == (info.reason, info.domain, dict(info.metadata))
    assert [("prompt", "too long")] == [(one.field, one.description) for one in bad.field_violations]
    assert 250 == retry.retry_delay.ToMilliseconds()
    assert "r-1" == request.request_id
    assert {"google.rpc.ErrorInfo"} == set(standard(errors.Unavailable("x")))


def test_a_standard_trailer_is_read_by_us() -> None:
    """A server that packs google.rpc's own messages tells us just as much."""
    status = status_pb2.Status(code=8, message="x")
    for message in (
        error_details_pb2.ErrorInfo(reason="quota_exceeded", domain=DOMAIN, metadata={"limit": "5"}),
        error_details_pb2.RetryInfo(retry_delay={"seconds": 3}),
        error_details_pb2.RequestInfo(request_id="r-2"),
    ):
        status.details.add().Pack(message)
    got = from_status(CODE.RESOURCE_EXHAUSTED, "x", ((DETAILS_KEY, status.SerializeToString()),))
    assert errors.QuotaExceeded is type(got)
    assert ({"limit": "5"}, 3.0, "r-2") == (got.details, got.retry_after, got.request_id)


def test_long_messages_are_cut_in_the_middle() -> None:
    """A message that echoes a huge value still fits into headers, and keeps its beginning and its end."""
    text = "model '" + "é" * 5000 + "' is not served here"
    cut = clipped(text)
    assert len(cut.encode()) <= MAX_MESSAGE_BYTES
    assert cut.startswith("model 'é") and cut.endswith("é' is not served here") and "…" in cut
    assert sum(len(raw) for _, raw in to_trailers(errors.InvalidRequest(text))) < 3 * MAX_MESSAGE_BYTES
    assert clipped("é" * (MAX_MESSAGE_BYTES // 2)) == "é" * (MAX_MESSAGE_BYTES // 2)
