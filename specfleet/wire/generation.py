"""GenerationService's servicer: a Generator behind gRPC. The client's end is `specfleet.client`."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from specfleet.core.errors import StreamInterrupted
from specfleet.core.generation import MAX_REQUEST_ID, Generator
from specfleet.v1 import generation_pb2 as pb
from specfleet.v1 import generation_pb2_grpc as rpc
from specfleet.wire import codec
from specfleet.wire.status import answering, begin

SERVICE = "specfleet.v1.GenerationService"
IDLE_SECONDS = 60.0


class GenerationService(rpc.GenerationServiceServicer):
    def __init__(self, generator: Generator, idle_seconds: float = IDLE_SECONDS) -> None:
        """`idle_seconds`: how long a reader may take nothing."""
        self._generator = generator
        self._idle_seconds = idle_seconds

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:  # noqa: N802
        # An id beyond its limit is refused below, and does not fit into the refusal either.
        request_id = request.request_id[:MAX_REQUEST_ID] or uuid.uuid4().hex
        async with answering(context, request_id):
            await begin(context)
            asked = replace(codec.generate_request_from_proto(request), request_id=request_id)
            # Closing at once, not when the garbage collector comes by: a cancelled call frees its pages within one step.
            async with aclosing(self._generator.generate(asked)) as events:  # type: ignore[type-var]
                async for event in events:
                    await self._send(context, codec.event_to_proto(event))

    async def _send(self, context: Any, message: pb.GenerateResponse) -> None:
        """Raises StreamInterrupted for a reader that takes nothing: what waits for it holds memory here and on a verifier."""
        try:
            async with asyncio.timeout(self._idle_seconds):
                await context.write(message)
        except TimeoutError:
            raise StreamInterrupted(f"nothing was read for {self._idle_seconds:g} s; go on behind what came") from None

    async def GetModel(  # noqa: N802
        self, request: pb.GenerationServiceGetModelRequest, context: Any
    ) -> pb.GenerationServiceGetModelResponse:
        async with answering(context):
            return pb.GenerationServiceGetModelResponse(model=codec.model_to_proto(await self._generator.model()))
