"""GenerationService's servicer: a Generator behind gRPC. The client's end is `specfleet.client`."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from specfleet.core.generation import MAX_REQUEST_ID, Generator
from specfleet.v1 import generation_pb2 as pb
from specfleet.v1 import generation_pb2_grpc as rpc
from specfleet.wire import codec
from specfleet.wire.status import answering

SERVICE = "specfleet.v1.GenerationService"


class GenerationService(rpc.GenerationServiceServicer):
    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:  # noqa: N802
        # An id beyond its limit is refused below, and does not fit into the refusal either.
        request_id = request.request_id[:MAX_REQUEST_ID] or uuid.uuid4().hex
        async with answering(context, request_id):
            asked = replace(codec.generate_request_from_proto(request), request_id=request_id)
            # Closing at once, not when the garbage collector comes by: a cancelled call frees its pages within one step.
            async with aclosing(self._generator.generate(asked)) as events:  # type: ignore[type-var]
                async for event in events:
                    yield codec.event_to_proto(event)

    async def GetModel(  # noqa: N802
        self, request: pb.GenerationServiceGetModelRequest, context: Any
    ) -> pb.GenerationServiceGetModelResponse:
        async with answering(context):
            return pb.GenerationServiceGetModelResponse(model=codec.model_to_proto(await self._generator.model()))
