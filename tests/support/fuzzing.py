"""Every message that comes from somebody else, and what reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from specfleet.v1 import common_pb2, generation_pb2, verification_pb2
from specfleet.wire import codec

CODECS: dict[type[Message], Callable[[Any], Any]] = {
    verification_pb2.VerifyRequest: codec.verify_request_from_proto,
    verification_pb2.VerifyResponse: codec.verify_response_from_proto,
    verification_pb2.GetLoadResponse: codec.load_from_proto,
    generation_pb2.GenerateRequest: codec.generate_request_from_proto,
    generation_pb2.GenerateResponse: codec.event_from_proto,
    common_pb2.Model: codec.model_from_proto,
}
