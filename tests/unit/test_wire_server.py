"""A real gRPC server and a real channel: health, reflection, ports, and how errors and endings arrive."""

from __future__ import annotations

import asyncio
import logging

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from specfleet.core import errors
from specfleet.core.errors import (
    Cancelled,
    ConfigurationError,
    ConnectionError_,
    InternalError,
    InvalidRequest,
    Overloaded,
    PositionGap,
    QuotaExceeded,
    SpecfleetError,
    Unavailable,
)
from specfleet.core.protocol import Close, Draft, Finished, ServerStream
from specfleet.core.types import FinishReason, Load, Usage
from specfleet.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from specfleet.wire import generation, verification
from specfleet.wire.channel import open_channel
from specfleet.wire.server import Server
from specfleet.wire.verification import PIECE_BYTES, GrpcVerifierConnection
from support.generation import Counter
from support.generation import serving as serving_generator
from support.wire import MODEL, Backend, connected, serving

DRAFT = Draft(position=0, tokens=(1,), confirmed=0)
FULL = Draft(position=0, tokens=tuple(range(256)), confirmed=0)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def finished(tokens: int) -> Finished:
    return Finished(FinishReason.STOP, Usage(tokens))


def errors_of_ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """grpc.aio itself logs now and then about event loops of earlier tests."""
    return [one for one in caplog.records if one.levelno >= logging.ERROR and one.name.startswith("specfleet")]


async def health(channel: grpc.aio.Channel, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


# --- health, reflection, ports ---------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_health_tells_live_from_ready() -> None:
    """ "" answers whether the process lives, a service's name whether it is ready."""
    async with serving(Backend()) as (server, address), open_channel(address) as channel:
        assert (SERVING, SERVING) == (await health(channel, ""), await health(channel, verification.SERVICE))
        await server.ready(False)
        assert (SERVING, NOT_SERVING) == (await health(channel, ""), await health(channel, verification.SERVICE))
        await server.ready(True)
        assert SERVING == await health(channel, verification.SERVICE)


@pytest.mark.asyncio
async def test_a_server_is_not_ready_until_it_says_so() -> None:
    """Between start and the first ready(True), the process lives and serves nothing yet."""
    server = Server()
    server.add_verification(Backend())
    address = server.bind("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(address) as channel:
            assert (SERVING, NOT_SERVING) == (await health(channel, ""), await health(channel, verification.SERVICE))
    finally:
        await server.stop(0.0)


@pytest.mark.asyncio
async def test_reflection_lists_the_services() -> None:
    """grpcurl and its like find what is served without our protos at hand."""
    server = Server()
    server.add_verification(Backend())
    server.add_generation(Counter())
    address = server.bind("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
            answers = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    finally:
        await server.stop(0.0)
    names = {one.name for one in answers[0].list_services_response.service}
    assert {verification.SERVICE, generation.SERVICE, "grpc.health.v1.Health"} <= names


@pytest.mark.asyncio
async def test_a_port_in_use_names_the_address_and_the_way_out() -> None:
    """Two servers never share a port, and the second one says which and what to do."""
    async with serving(Backend()) as (_, address):
        with pytest.raises(ConfigurationError, match=f"cannot listen on {address}: .*in use.*port 0 for any free port"):
            Server().bind(address)


@pytest.mark.parametrize("address", ["nonsense", "host:port", "1.2.3.4:70000", ":1"])
@pytest.mark.asyncio
async def test_what_is_no_address_is_refused(address: str) -> None:
    """An address that is none is a configuration error before any socket is touched."""
    with pytest.raises(ConfigurationError, match=r"is not HOST:PORT"):
        Server().bind(address)
    with pytest.raises(ConfigurationError, match=r"is not HOST:PORT"):
        GrpcVerifierConnection(address)


# --- unary calls -----------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_unary_calls_answer() -> None:
    """GetModel and GetLoad carry what the backend says."""
    async with connected(Backend()) as connection:
        assert MODEL == await connection.model()
        assert Load(1, 2, 3, 0.5) == await connection.load()


@pytest.mark.asyncio
async def test_unary_failures_arrive_typed() -> None:
    """Every unary call raises the backend's own error, with its fields."""
    fault = Unavailable("draining; try another verifier", details={"why": "drain"}, retry_after=2.5)
    async with connected(Backend(fault=fault)) as connection:
        for call in (connection.model, connection.load, connection.tokenizer_files):
            with pytest.raises(Unavailable) as caught:
                await call()
            got = caught.value
            assert (str(fault), fault.details, 2.5) == (str(got), got.details, got.retry_after)


@pytest.mark.asyncio
async def test_our_own_faults_leak_nothing_and_are_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is INTERNAL with a request id that the log has, and says nothing of what is inside."""

    async def broken(stream: ServerStream) -> None:
        raise RuntimeError("secret of the house")

    async with connected(Backend(broken, fault=RuntimeError("secret of the house"))) as connection:
        caught: list[InternalError] = []
        for call in (connection.model, connection.load, connection.tokenizer_files):
            with pytest.raises(InternalError) as one:
                await call()
            caught.append(one.value)
        stream = await connection.verify()
        with pytest.raises(InternalError) as one:
            await stream.receive()
        caught.append(one.value)
    logged = [vars(record)["request_id"] for record in errors_of_ours(caplog)]
    assert logged == [error.request_id for error in caught]
    assert 4 == len(set(logged)) and all(logged)
    for error in caught:
        assert error.request_id in str(error) and "secret" not in f"{error} {error.details}"


@pytest.mark.asyncio
async def test_tokenizer_files_reassemble() -> None:
    """Files longer than a piece, exactly as long, and empty ones come out as they went in."""
    files = {
        "tokenizer.json": bytes(range(256)) * (PIECE_BYTES // 100),
        "exact": b"x" * PIECE_BYTES,
        "empty": b"",
        "short": b"{}",
    }
    async with connected(Backend(files=files)) as connection:
        assert files == await connection.tokenizer_files()


# --- Verify streams --------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_messages_arrive_in_order_and_the_end_is_none() -> None:
    """Both directions keep order; the server's return ends the stream, and stays its end."""
    got: list[object] = []

    async def echo(stream: ServerStream) -> None:
        while not isinstance(message := await stream.receive(), Close):
            got.append(message)
            await stream.send(finished(len(got)))

    async with connected(Backend(echo)) as connection:
        stream = await connection.verify()
        for _ in range(3):
            await stream.send(DRAFT)
        await stream.send(Close())
        assert [finished(n) for n in (1, 2, 3)] == [await stream.receive() for _ in range(3)]
        assert await stream.receive() is None
        assert await stream.receive() is None
        await stream.send(DRAFT)
    assert [DRAFT] * 3 == got


ERRORS = [
    Overloaded("full; come back", retry_after=1.0),
    QuotaExceeded("used up", details={"limit": "5"}, retry_after=60.0),
    InvalidRequest.field("prompt", "is bad"),
    PositionGap("a gap"),
    errors.ModelMismatch("vocabulary differs", details={"first_difference": "17"}),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.asyncio
async def test_an_error_ends_the_stream_typed(error: SpecfleetError, before: int) -> None:
    """The backend's error is the end of the stream, behind all messages sent before, and every later call repeats it."""

    async def refuse(stream: ServerStream) -> None:
        await stream.receive()
        for n in range(before):
            await stream.send(finished(n))
        raise error

    async with connected(Backend(refuse)) as connection:
        stream = await connection.verify()
        await stream.send(DRAFT)
        assert [finished(n) for n in range(before)] == [await stream.receive() for _ in range(before)]
        for call in (stream.receive, stream.receive, lambda: stream.send(DRAFT)):
            with pytest.raises(type(error)) as caught:
                await call()  # type: ignore[no-untyped-call]
            got = caught.value
            assert (str(error), error.details, error.retry_after) == (str(got), got.details, got.retry_after)


@pytest.mark.asyncio
async def test_an_error_reaches_a_drafter_that_only_sends() -> None:
    """A stream that was refused at once raises its reason from send, too."""

    async def refuse(stream: ServerStream) -> None:
        raise Overloaded("full; come back", retry_after=1.0)

    async with connected(Backend(refuse)) as connection:
        stream = await connection.verify()
        with pytest.raises(Overloaded):
            async with asyncio.timeout(10):
                while True:
                    await stream.send(DRAFT)
                    await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_an_error_reaches_a_drafter_that_is_blocked_in_send() -> None:
    """When the server ends a stream whose drafter waits for flow control, the reason is the server's, not grpc's own."""

    async def full(stream: ServerStream) -> None:
        await stream.receive()
        await asyncio.sleep(0.1)
        raise PositionGap("a gap")

    async with connected(Backend(full)) as connection:
        for _ in range(3):
            stream = await connection.verify()
            with pytest.raises(PositionGap, match="a gap"):
                async with asyncio.timeout(10):
                    while True:
                        await stream.send(FULL)
            with pytest.raises(PositionGap, match="a gap"):
                await stream.receive()


@pytest.mark.parametrize("error", [PositionGap("a gap"), None])
@pytest.mark.asyncio
async def test_what_was_sent_before_the_end_is_read_though_a_write_fails(error: SpecfleetError | None) -> None:
    """A drafter that sends while the server ends the stream still gets every message, and then the true end."""

    async def end(stream: ServerStream) -> None:
        for _ in range(20):
            await stream.receive()
        for n in range(5):
            await stream.send(finished(n))
        if error is not None:
            raise error

    async def flood(stream: object) -> None:
        try:
            while True:
                await stream.send(FULL)  # type: ignore[attr-defined]
        except SpecfleetError as caught:
            assert type(error) is type(caught)

    async with connected(Backend(end)) as connection:
        for pause in (0.0, 0.1):
            stream = await connection.verify()
            sending = asyncio.create_task(flood(stream))
            await asyncio.sleep(pause)
            assert [finished(n) for n in range(5)] == [await stream.receive() for _ in range(5)]
            if error is None:
                assert await stream.receive() is None
            else:
                with pytest.raises(PositionGap):
                    await stream.receive()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


@pytest.mark.asyncio
async def test_cancelling_the_stream_cancels_the_server() -> None:
    """A drafter that gives up leaves no serve() behind, and is told so by a typed error."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def wait(stream: ServerStream) -> None:
        await stream.receive()
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
            raise

    async with connected(Backend(wait)) as connection:
        stream = await connection.verify()
        await stream.send(DRAFT)
        receiving = asyncio.create_task(stream.receive())
        await asyncio.wait_for(begun.wait(), 5)
        stream.cancel()
        await asyncio.wait_for(ended.wait(), 5)
        for call in (lambda: receiving, stream.receive, lambda: stream.send(DRAFT)):
            with pytest.raises(Cancelled):
                await call()


@pytest.mark.asyncio
async def test_cancelling_the_reading_task_is_no_error_of_the_stream() -> None:
    """A task that is cancelled while it receives is cancelled, as any other."""
    async with connected(Backend(lambda stream: asyncio.Event().wait())) as connection:  # type: ignore[arg-type,return-value]
        stream = await connection.verify()
        receiving = asyncio.create_task(stream.receive())
        await asyncio.sleep(0.05)
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving


@pytest.mark.asyncio
async def test_the_servers_death_is_a_connection_error() -> None:
    """A server that goes away midway, or was never there, is told as such, with its address."""

    async def wait(stream: ServerStream) -> None:
        await stream.send(finished(1))
        await asyncio.Event().wait()

    async with serving(Backend(wait)) as (server, address):
        connection = GrpcVerifierConnection(address)
        stream = await connection.verify()
        assert finished(1) == await stream.receive()
        await server.stop(0.0)
        for call in (stream.receive, connection.model, connection.load, connection.tokenizer_files):
            with pytest.raises(ConnectionError_, match=f"cannot reach {address}"):
                await call()
        stream = await connection.verify()
        with pytest.raises(ConnectionError_, match=f"cannot reach {address}"):
            await stream.send(DRAFT)
        with pytest.raises(ConnectionError_, match=f"cannot reach {address}"):
            await stream.receive()
        await connection.close()


@pytest.mark.parametrize("raw", [b"", b"\xff\xff\xff", b"\x12\x03\x0a\xff\xff"])
@pytest.mark.asyncio
async def test_a_malformed_message_ends_its_stream_typed(raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes that are no message are the sender's fault: INVALID_ARGUMENT, and nothing in the log."""

    async def read(stream: ServerStream) -> None:
        await stream.receive()

    async with serving(Backend(read)) as (_, address), open_channel(address) as channel:
        call = channel.stream_stream(f"/{verification.SERVICE}/Verify")()
        await call.write(raw)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert grpc.StatusCode.INVALID_ARGUMENT is caught.value.code()
        assert str(caught.value.details()).startswith("message: is ")
    assert [] == errors_of_ours(caplog)


@pytest.mark.asyncio
async def test_an_error_beside_the_first_message_arrives(caplog: pytest.LogCaptureFixture) -> None:
    """A session's reader may find an error while its writer is just sending the first message."""

    async def both(stream: ServerStream) -> None:
        writing = asyncio.create_task(stream.send(finished(1)))
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        raise InvalidRequest("wrong")

    async with connected(Backend(both)) as connection:
        for _ in range(50):
            stream = await connection.verify()
            with pytest.raises(InvalidRequest, match="wrong"):
                while True:
                    await stream.receive()
    assert [] == [one for one in caplog.records if one.levelno >= logging.ERROR]


@pytest.mark.asyncio
async def test_a_refusal_that_echoes_a_huge_value_arrives() -> None:
    """An error text far beyond what headers carry is shortened, and still typed."""

    async def refuse(stream: ServerStream) -> None:
        raise errors.UnknownModel(f"model {'é' * 100_000!r} is not served here")

    async with connected(Backend(refuse)) as connection:
        stream = await connection.verify()
        with pytest.raises(errors.UnknownModel, match=r"^model 'é+…é+' is not served here$"):
            await stream.receive()


# --- Generate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [129, 100_000])
@pytest.mark.asyncio
async def test_a_request_id_beyond_its_limit_is_refused_by_name(length: int) -> None:
    """However long the id, its refusal fits into the trailers. (The generator never sees the request.)"""
    generator = Counter()
    async with serving_generator(generator) as address, open_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        sampling = common_pb2.SamplingParams(max_tokens=1, top_p=1.0)
        call = stub.Generate(generation_pb2.GenerateRequest(prompt="x", sampling=sampling, request_id="x" * length))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert grpc.StatusCode.INVALID_ARGUMENT is caught.value.code()
    assert f"request_id: has {length} characters, at most 128" == caught.value.details()
    assert [] == generator.requests
