"""Every message survives the wire, and no bytes whatever bring out anything but a typed error."""

from __future__ import annotations

import contextlib
import math

from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from specfleet.core.errors import SpecfleetError
from specfleet.core.generation import Event, GenerationRequest
from specfleet.core.protocol import Draft, Open, Shadow, VerifyRequest, VerifyResponse
from specfleet.core.types import Load, ModelInfo
from specfleet.v1 import common_pb2, generation_pb2, verification_pb2
from specfleet.wire import codec
from support.messages import EVENTS, GENERATIONS, LOADS, MODELS, REQUESTS, RESPONSES

LIGHT = settings(max_examples=60, deadline=None)


@LIGHT
@given(REQUESTS)
def test_verify_requests_survive_the_wire(message: VerifyRequest) -> None:
    """What a drafter sends is what the verifier gets."""
    raw = codec.verify_request_to_proto(message).SerializeToString()
    assert message == codec.verify_request_from_proto(verification_pb2.VerifyRequest.FromString(raw))


@LIGHT
@given(RESPONSES)
def test_verify_responses_survive_the_wire(message: VerifyResponse) -> None:
    """What a verifier sends is what the drafter gets."""
    raw = codec.verify_response_to_proto(message).SerializeToString()
    assert message == codec.verify_response_from_proto(verification_pb2.VerifyResponse.FromString(raw))


@LIGHT
@given(GENERATIONS)
def test_generation_requests_survive_the_wire(request: GenerationRequest) -> None:
    """What a client asks for is what the server is asked for."""
    raw = codec.generate_request_to_proto(request).SerializeToString()
    assert request == codec.generate_request_from_proto(generation_pb2.GenerateRequest.FromString(raw))


@LIGHT
@given(EVENTS)
def test_events_survive_the_wire(event: Event) -> None:
    """What a server streams is what the client sees."""
    raw = codec.event_to_proto(event).SerializeToString()
    assert event == codec.event_from_proto(generation_pb2.GenerateResponse.FromString(raw))


@LIGHT
@given(MODELS, LOADS)
def test_models_and_loads_survive_the_wire(model: ModelInfo, load: Load) -> None:
    """GetModel and GetLoad say what the verifier said."""
    raw = codec.model_to_proto(model).SerializeToString()
    assert model == codec.model_from_proto(common_pb2.Model.FromString(raw))
    raw = codec.load_to_proto(load).SerializeToString()
    assert load == codec.load_from_proto(verification_pb2.GetLoadResponse.FromString(raw))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes_bring_out_typed_errors_only(raw: bytes) -> None:
    """Bytes that are no message, or a malformed one, raise DecodeError or a SpecfleetError, nothing else."""
    with contextlib.suppress(DecodeError, SpecfleetError):
        codec.verify_request_from_proto(verification_pb2.VerifyRequest.FromString(raw))
    with contextlib.suppress(DecodeError, SpecfleetError):
        codec.generate_request_from_proto(generation_pb2.GenerateRequest.FromString(raw))
    with contextlib.suppress(DecodeError, SpecfleetError):
        codec.verify_response_from_proto(verification_pb2.VerifyResponse.FromString(raw))
    with contextlib.suppress(DecodeError, SpecfleetError):
        codec.event_from_proto(generation_pb2.GenerateResponse.FromString(raw))


FLOATS = st.floats(width=32)
PROTO_DRAFTS = st.builds(
    verification_pb2.Draft,
    position=st.integers(0, 2**32 - 1),
    token_ids=st.lists(st.integers(0, 3), max_size=4),
    confirmed=st.integers(0, 2**32 - 1),
    last=st.booleans(),
    distributions=st.lists(
        st.builds(
            verification_pb2.DraftDistribution,
            token_ids=st.lists(st.integers(0, 3), max_size=3),
            probabilities=st.lists(
                st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0, float("nan"), float("inf")]), max_size=3
            ),
        ),
        max_size=4,
    ),
    draft_seconds=FLOATS,
)
PROTO_SAMPLING = st.builds(
    common_pb2.SamplingParams,
    max_tokens=st.integers(0, 2**32 - 1),
    temperature=st.floats(),
    top_p=st.floats(),
    min_p=st.floats(),
    seed=st.none() | st.integers(0, 2**64 - 1),
    stop=st.lists(st.text(st.characters(codec="utf-8"), max_size=3), max_size=20),
)
PROTO_OPENS = st.builds(
    verification_pb2.Open,
    protocol_version=st.integers(0, 3),
    prompt_token_ids=st.lists(st.integers(0, 9), max_size=3),
    sampling=PROTO_SAMPLING,
    request_id=st.text("x", max_size=140),
    draft_seconds_per_token=FLOATS,
    round_trip_seconds=FLOATS,
)
PROTO_SHADOWS = st.builds(
    verification_pb2.Shadow,
    tested=st.integers(0, 9),
    accepted=st.integers(0, 9),
    draft_seconds_per_token=FLOATS,
)
PROTO_REQUESTS = (
    st.builds(verification_pb2.VerifyRequest, draft=PROTO_DRAFTS)
    | st.builds(verification_pb2.VerifyRequest, open=PROTO_OPENS)
    | st.builds(verification_pb2.VerifyRequest, shadow=PROTO_SHADOWS)
)


@settings(max_examples=300, deadline=None)
@given(PROTO_REQUESTS)
def test_hostile_fields_are_refused_or_made_harmless(proto: verification_pb2.VerifyRequest) -> None:
    """Whatever a field holds, what passes is well-formed, and what does not raises a SpecfleetError."""
    try:
        message = codec.verify_request_from_proto(proto)
    except SpecfleetError:
        return
    match message:
        case Open():
            assert message.prompt and message.protocol_version == 1 and len(message.request_id) <= 128
            assert 0 <= message.sampling.temperature <= 100 and 0 < message.sampling.top_p <= 1
            assert reported(message.round_trip_seconds) and reported(message.draft_seconds_per_token)
        case Draft():
            assert reported(message.draft_seconds)
            for token, q in zip(message.tokens, message.q or (), strict=message.q is not None):
                assert token in q.token_ids and len(set(q.token_ids)) == len(q.token_ids) == len(q.probabilities)
                assert abs(sum(q.probabilities) - 1) <= 1e-3 and min(q.probabilities) > 0
        case Shadow():
            assert message.accepted <= message.tested and reported(message.draft_seconds_per_token)


def reported(seconds: float) -> bool:
    """A duration within an hour, or NaN for what cannot be one."""
    return math.isnan(seconds) or 0 <= seconds <= 3600
