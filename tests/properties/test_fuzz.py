"""Hostile values and bytes in every message, both ways: what comes out is a value or a typed error, never anything else.

SPECFLEET_EXAMPLES=20000 plays longer; `make fuzz` also lets coverage lead the way (tests/fuzz).
"""

from __future__ import annotations

import contextlib
import os
import random

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specfleet.core.errors import InvalidRequest, SpecfleetError
from specfleet.v1 import common_pb2, errors_pb2, generation_pb2, verification_pb2
from specfleet.wire import codec, limits, status
from support.fuzzing import CODECS
from support.hostile import messages, mutated

EXAMPLES = int(os.environ.get("SPECFLEET_EXAMPLES", "200"))
MANY = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kind", CODECS, ids=lambda kind: kind.DESCRIPTOR.name)
@MANY
@given(st.data())
def test_any_values_give_a_value_or_a_typed_error(kind: type[Message], data: st.DataObject) -> None:
    """Structure: every field of every message, with the edges of its range and beyond."""
    message = data.draw(messages(kind))
    with contextlib.suppress(SpecfleetError):
        CODECS[kind](message)


@pytest.mark.parametrize("kind", CODECS, ids=lambda kind: kind.DESCRIPTOR.name)
@MANY
@given(st.data(), st.integers(0, 2**32))
def test_any_bytes_give_a_value_or_a_typed_error(kind: type[Message], data: st.DataObject, seed: int) -> None:
    """Bytes: messages cut, repeated, flipped and filled up; what still decodes meets the codec."""
    raw = mutated(data.draw(messages(kind)).SerializeToString(), random.Random(seed))
    with contextlib.suppress(SpecfleetError, DecodeError):
        CODECS[kind](kind.FromString(raw))


@MANY
@given(st.binary(max_size=200) | messages(errors_pb2.ErrorStatus).map(lambda one: one.SerializeToString()))
def test_a_foreign_servers_trailers_are_read_or_left(raw: bytes) -> None:
    """Error details come from servers, which may be anybody's."""
    for code in status.TABLE:
        assert isinstance(status.from_status(code.grpc, "x", ((status.DETAILS_KEY, raw),)), SpecfleetError)


LONG = {
    "prompt_token_ids": verification_pb2.Open(prompt_token_ids=[1] * (limits.MAX_TOKENS_GIVEN + 1)),
    "output_token_ids": verification_pb2.Open(
        prompt_token_ids=[1], output_token_ids=[1] * (limits.MAX_TOKENS_GIVEN + 1)
    ),
    "model": verification_pb2.Open(prompt_token_ids=[1], model="m" * 257),
    "service_class": verification_pb2.Open(prompt_token_ids=[1], service_class="m" * 257),
    "vocabulary_digest": verification_pb2.Open(prompt_token_ids=[1], vocabulary_digest=b"d" * 65),
    "stop": verification_pb2.Open(prompt_token_ids=[1], sampling=common_pb2.SamplingParams(stop=["s" * 257])),
    "stop_token_ids": verification_pb2.Open(
        prompt_token_ids=[1], sampling=common_pb2.SamplingParams(stop_token_ids=[1] * 1025)
    ),
    "request_id": verification_pb2.Open(prompt_token_ids=[1], request_id="r" * 129),
}


@pytest.mark.parametrize("name", LONG)
def test_what_is_too_long_is_refused_by_name(name: str) -> None:
    """Each limit on an Open's sizes, one beyond: the field and the limit are in the error."""
    proto = LONG[name]
    proto.protocol_version = 1
    with pytest.raises(InvalidRequest, match=rf"^{name}: has \d+ \w+, at most \d+$") as caught:
        codec.verify_request_from_proto(verification_pb2.VerifyRequest(open=proto))
    assert name == caught.value.details["field"]


def test_too_much_chat_is_refused_by_name() -> None:
    """Messages and roles of a chat have limits, too."""
    for count, role, name in ((4097, "user", "chat"), (1, "r" * 65, "role")):
        chat = generation_pb2.ChatMessages(messages=[generation_pb2.ChatMessage(role=role, content="x")] * count)
        with pytest.raises(InvalidRequest, match=f"^{name}: has"):
            codec.generate_request_from_proto(generation_pb2.GenerateRequest(chat=chat))
