"""One server as the SDK sees it: a channel, the calls on it, and what went wrong in our own words."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from specfleet.client.reply import Health
from specfleet.core.errors import Cancelled, ConfigurationError, ConnectionError_, SpecfleetError
from specfleet.core.generation import Event, GenerationRequest
from specfleet.core.types import ModelInfo
from specfleet.v1 import generation_pb2, generation_pb2_grpc
from specfleet.wire import codec
from specfleet.wire.channel import Dialer
from specfleet.wire.credentials import Credentials
from specfleet.wire.status import from_rpc_error

SERVICE = "specfleet.v1.GenerationService"
_CHECK = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"
_EOF: Any = grpc.aio.EOF


class Connection:
    """Calls to one target. Belongs to the event loop it is first used in."""

    def __init__(self, target: str, credentials: Credentials) -> None:
        """Raises ConfigurationError for what is not HOST:PORT, and where plaintext would leave this machine."""
        self.target = target
        self._dialer = Dialer(target, credentials)
        self.failed_at = float("-inf")
        """When a generation last failed here, in `time.perf_counter` seconds."""

    async def generate(self, request: GenerationRequest, *, connect_within: float, within: float) -> GenerateCall:
        """Begin a generation that ends `within` so many seconds. Raises ConnectionError_ when nothing listens."""
        channel = await self._connected(connect_within)
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
        call = stub.Generate(codec.generate_request_to_proto(request), timeout=within, metadata=self._dialer.metadata())
        return GenerateCall(call, self.target)

    async def model(self, *, connect_within: float, within: float) -> ModelInfo:
        channel = await self._connected(connect_within)
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
        request = generation_pb2.GenerationServiceGetModelRequest()
        call = stub.GetModel(request, timeout=within, metadata=self._dialer.metadata())
        return codec.model_from_proto((await self._answer(call)).model)

    async def health(self, *, connect_within: float, within: float) -> Health:
        """Never raises for what is wrong with the server: that is the answer."""
        try:
            channel = await self._connected(connect_within)
            live = await self._serving(channel, "", within)
            ready = live and await self._serving(channel, SERVICE, within)
        except SpecfleetError as error:
            return Health(self.target, live=False, ready=False, message=str(error))
        return Health(
            self.target, live, ready, "" if ready else "it is starting, draining, or cannot reach its verifier"
        )

    async def close(self) -> None:
        await self._dialer.close()

    async def _connected(self, seconds: float) -> grpc.aio.Channel:
        """A channel that is ready or has just failed. A call on the latter fails at once, and says why."""
        channel = self._dialer.channel()
        decided = (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE)
        try:
            async with asyncio.timeout(seconds):
                while (state := channel.get_state(try_to_connect=True)) not in decided:
                    await channel.wait_for_state_change(state)
        except TimeoutError:
            raise ConnectionError_(
                f"cannot reach {self.target}: no answer within {seconds:.3g} s; is the address right, and is it reachable?"
            ) from None
        return channel

    async def _serving(self, channel: grpc.aio.Channel, service: str, within: float) -> bool:
        """The standard health check. Its two messages have one field each, so the SDK needs no package for them."""
        name = service.encode()
        request = b"\x0a" + bytes([len(name)]) + name if name else b""
        check = channel.unary_unary(_CHECK, request_serializer=bytes, response_deserializer=bytes)
        call = check(request, timeout=within, metadata=self._dialer.metadata())
        return bool(await self._answer(call) == _SERVING)

    async def _answer(self, call: Any) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, peer=self.target) from error
        except asyncio.CancelledError:
            _reraise_own_cancellation()
            raise Cancelled(f"{self.target} cancelled the call") from None


class GenerateCall:
    """The events of one Generate call."""

    def __init__(self, call: Any, target: str) -> None:
        self._call = call
        self._target = target

    async def next(self) -> Event | None:
        """The next event, None at the end of the stream. Raises the typed error of a call that failed, Cancelled after
        `cancel`."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, peer=self._target) from error
        except asyncio.CancelledError:
            _reraise_own_cancellation()
            raise Cancelled(f"the call to {self._target} was cancelled") from None
        return None if message is _EOF else codec.event_from_proto(message)

    def cancel(self) -> None:
        self._call.cancel()


def _reraise_own_cancellation() -> None:
    """grpc raises CancelledError both when a *call* and when our *task* is cancelled; only the latter is asyncio's."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise


def connections(targets: str | Sequence[str], credentials: Credentials) -> list[Connection]:
    """Raises ConfigurationError when there are none, or one is not HOST:PORT."""
    names = [targets] if isinstance(targets, str) else list(dict.fromkeys(targets))
    if not names:
        raise ConfigurationError("no server given; give at least one HOST:PORT, such as localhost:7700")
    return [Connection(name, credentials) for name in names]
