"""VerificationService on both ends of the wire: the servicer hands streams to a backend, the client opens them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from specfleet.core.errors import Cancelled, InvalidRequest
from specfleet.core.protocol import ServerStream, VerifyRequest, VerifyResponse
from specfleet.core.trace import Phase, Tracer
from specfleet.core.types import Load, ModelInfo
from specfleet.v1 import verification_pb2 as pb
from specfleet.v1 import verification_pb2_grpc as rpc
from specfleet.wire import codec
from specfleet.wire.auth import caller
from specfleet.wire.channel import Dialer
from specfleet.wire.credentials import PLAIN, Credentials
from specfleet.wire.status import answering, begin, from_rpc_error, from_status

SERVICE = "specfleet.v1.VerificationService"
PIECE_BYTES = 1024 * 1024
STATUS_TRIES = 1000
"""Milliseconds to wait for the status of a call that has ended."""

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")


class VerificationBackend(Protocol):
    """What the servicer stands in front of."""

    async def serve(self, stream: ServerStream, identity: str) -> None:
        """Serve one Verify stream of `identity` to its end. Cancelled when the drafter goes away."""
        ...

    def model(self) -> ModelInfo: ...

    def load(self) -> Load: ...

    def tokenizer_files(self) -> Mapping[str, bytes]: ...


class VerificationService(rpc.VerificationServiceServicer):
    def __init__(self, backend: VerificationBackend, tracer: Tracer | None = None) -> None:
        self._backend = backend
        self._tracer = tracer

    async def Verify(self, request_iterator: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:  # noqa: N802
        async with answering(context):
            await begin(context)
            await self._backend.serve(_GrpcServerStream(context, self._tracer), caller())

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802
        async with answering(context):
            return pb.GetModelResponse(model=codec.model_to_proto(self._backend.model()))

    async def GetLoad(self, request: pb.GetLoadRequest, context: Any) -> pb.GetLoadResponse:  # noqa: N802
        async with answering(context):
            return codec.load_to_proto(self._backend.load())

    async def GetTokenizer(  # noqa: N802
        self, request: pb.GetTokenizerRequest, context: Any
    ) -> AsyncIterator[pb.GetTokenizerResponse]:
        async with answering(context):
            for name, content in self._backend.tokenizer_files().items():
                for at in range(0, len(content) or 1, PIECE_BYTES):
                    yield pb.GetTokenizerResponse(file_name=name, content=content[at : at + PIECE_BYTES])


class _GrpcServerStream:
    """ServerStream over one RPC's context."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], tracer: Tracer | None) -> None:
        self._context = context
        self._tracer = tracer

    async def receive(self) -> VerifyRequest | None:
        try:
            message = await self._context.read()
        except DecodeError:
            raise InvalidRequest.field("message", "is no VerifyRequest: its bytes cannot be decoded") from None
        return None if message is grpc.aio.EOF else _coded(self._tracer, codec.verify_request_from_proto, message)

    async def send(self, message: VerifyResponse) -> None:
        await self._context.write(_coded(self._tracer, codec.verify_response_to_proto, message))


class GrpcVerifierConnection:
    """VerifierConnection over gRPC."""

    def __init__(self, target: str, credentials: Credentials = PLAIN, tracer: Tracer | None = None) -> None:
        """Raises ConfigurationError for what is not HOST:PORT, and where plaintext would leave this machine."""
        self._target = target
        self._dialer = Dialer(target, credentials)
        self._tracer = tracer

    @property
    def target(self) -> str:
        return self._target

    async def verify(self) -> _GrpcClientStream:
        return _GrpcClientStream(self._stub.Verify(metadata=self._dialer.metadata()), self._target, self._tracer)

    async def model(self) -> ModelInfo:
        call = self._stub.GetModel(pb.GetModelRequest(), timeout=10, metadata=self._dialer.metadata())
        return codec.model_from_proto((await self._typed(call)).model)

    async def load(self) -> Load:
        call = self._stub.GetLoad(pb.GetLoadRequest(), timeout=10, metadata=self._dialer.metadata())
        return codec.load_from_proto(await self._typed(call))

    async def tokenizer_files(self) -> dict[str, bytes]:
        files: dict[str, bytearray] = {}
        call = self._stub.GetTokenizer(pb.GetTokenizerRequest(), timeout=60, metadata=self._dialer.metadata())
        try:
            async for piece in call:
                files.setdefault(piece.file_name, bytearray()).extend(piece.content)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, peer=self._target) from None
        return {name: bytes(content) for name, content in files.items()}

    async def close(self) -> None:
        await self._dialer.close()

    @property
    def _stub(self) -> Any:
        stub: Any = rpc.VerificationServiceStub(self._dialer.channel())
        return stub

    async def _typed(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, peer=self._target) from None


class _GrpcClientStream:
    """ClientStream over one RPC's call.

    When the server ends a stream while a write is under way, grpc puts a status of its own over the server's, and
    `call.read()` gives nothing more, whatever has arrived by then. So messages are iterated, which ends behind the last
    one, and the first true status is noted when it comes.
    """

    def __init__(self, call: Any, target: str, tracer: Tracer | None) -> None:
        self._call = call
        self._tracer = tracer
        self._target = target
        self._messages = aiter(call)
        self._given_up = False
        self._status: _Status | None = None
        call.add_done_callback(self._note)

    async def send(self, message: VerifyRequest) -> None:
        """Sending to a stream that has ended raises its error if that is known by now; else `receive` will tell."""
        try:
            await self._call.write(_coded(self._tracer, codec.verify_request_to_proto, message))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            self._note(self._call)
            self._check()
            await asyncio.sleep(0)

    async def receive(self) -> VerifyResponse | None:
        try:
            message = await anext(self._messages, None)
        except grpc.aio.AioRpcError:
            message = None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._given_up and not (task and task.cancelling()):
                raise Cancelled("the stream was given up") from None
            raise
        if message is not None:
            return _coded(self._tracer, codec.verify_response_from_proto, message)
        await self._ended()
        self._check()
        return None

    def cancel(self) -> None:
        self._given_up = True
        self._call.cancel()

    def _note(self, call: Any) -> None:
        """Keep the call's status, if it is the first that is not a failed write's."""
        if self._status is None and call.done():
            status = _Status(_result(call.code()), _result(call.details()), _result(call.trailing_metadata()))
            self._status = None if status.details == _FAILED_WRITE else status

    async def _ended(self) -> None:
        """Wait for the true status. It is due, now that all messages are read."""
        for _ in range(STATUS_TRIES):
            self._note(self._call)
            if self._status is not None:
                return
            await asyncio.sleep(0.001)
        self._status = _Status(grpc.StatusCode.UNAVAILABLE, "the stream broke")

    def _check(self) -> None:
        if self._status is not None and self._status.code is not grpc.StatusCode.OK:
            code, details, trailers = self._status.code, self._status.details, self._status.trailers
            raise from_status(code, details or code.name, tuple(trailers or ()), peer=self._target)


def _coded(tracer: Tracer | None, code: Callable[[A], B], message: A) -> B:
    return code(message) if tracer is None else tracer.timed(Phase.SERIALIZATION, code, message)


@dataclass(frozen=True, slots=True)
class _Status:
    code: grpc.StatusCode
    details: str | None
    trailers: Any = None


_FAILED_WRITE = "Internal error from Core"


def _result(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    raise AssertionError("asked for the status of a call that has none")
