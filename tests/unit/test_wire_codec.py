"""What the codec refuses, and in which words: the field, the value, the limit."""

from __future__ import annotations

import math
from typing import Any

import pytest

from specfleet.core.errors import InternalError, InvalidRequest, ModelMismatch, SpecfleetError
from specfleet.core.protocol import MAX_DRAFT_TOKENS, Draft, Open, Shadow
from specfleet.core.types import DRAFT_SUPPORT_LIMIT, PROTOCOL_VERSION, FinishReason, SamplingParams, TokenKind
from specfleet.v1 import common_pb2, generation_pb2, verification_pb2
from specfleet.wire import codec

SAMPLING = common_pb2.SamplingParams(max_tokens=8, temperature=0.5, top_p=1.0)


def opening(sampling: common_pb2.SamplingParams = SAMPLING, **fields: Any) -> verification_pb2.VerifyRequest:
    given = {"protocol_version": PROTOCOL_VERSION, "prompt_token_ids": [1], "sampling": sampling} | fields
    return verification_pb2.VerifyRequest(open=verification_pb2.Open(**given))


def draft(tokens: tuple[int, ...], *q: tuple[tuple[int, ...], tuple[float, ...]], **fields: Any) -> Any:
    distributions = [verification_pb2.DraftDistribution(token_ids=ids, probabilities=p) for ids, p in q]
    proto = verification_pb2.Draft(token_ids=tokens, distributions=distributions, **fields)
    return verification_pb2.VerifyRequest(draft=proto)


def refusal(proto: verification_pb2.VerifyRequest) -> SpecfleetError:
    with pytest.raises(SpecfleetError) as caught:
        codec.verify_request_from_proto(proto)
    return caught.value


def test_a_message_without_content_is_refused() -> None:
    """An empty oneof names what it must be; from a server it is the server's fault."""
    error = refusal(verification_pb2.VerifyRequest())
    assert "message: is empty, must be one of open, draft, shadow and close" == str(error)
    assert isinstance(error, InvalidRequest)
    with pytest.raises(InternalError, match="empty message"):
        codec.verify_response_from_proto(verification_pb2.VerifyResponse())
    with pytest.raises(InternalError, match="empty message"):
        codec.event_from_proto(generation_pb2.GenerateResponse())


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1, 2**32 - 1])
def test_a_foreign_protocol_version_is_refused_with_both_versions(version: int) -> None:
    """A peer too old or too new learns its version, ours, and what to do."""
    error = refusal(opening(protocol_version=version))
    assert isinstance(error, ModelMismatch)
    assert f"protocol version {version} is not spoken here: this server speaks 1 to {PROTOCOL_VERSION};" in str(error)


@pytest.mark.parametrize(
    ("q", "problem"),
    [
        ([((1, 2), (0.5, 0.25))], "sums to 0.75, must be positive and sum to 1"),
        ([((1, 2), (1.5, -0.5))], "sums to 1, must be positive and sum to 1"),
        ([((1, 2), (1.0, 0.0))], "sums to 1, must be positive and sum to 1"),
        ([((1, 2), (math.nan, 0.5))], "sums to nan, must be positive and sum to 1"),
        ([((1, 2), (math.inf, 0.5))], "sums to inf, must be positive and sum to 1"),
        ([((1, 1), (0.5, 0.5))], "names a token id twice"),
        ([((2, 3), (0.5, 0.5))], "does not hold the drafted token 1"),
        ([((1, 2), (1.0,))], f"has 2 ids and 1 probabilities, must be 1 to {DRAFT_SUPPORT_LIMIT} of each"),
        ([((), ())], f"has 0 ids and 0 probabilities, must be 1 to {DRAFT_SUPPORT_LIMIT} of each"),
        ([(tuple(range(65)), (1 / 65,) * 65)], "has 65 ids and 65 probabilities, must be 1 to 64 of each"),
        ([((1,), (1.0,))] * 2, "has 2 entries for 1 tokens, must be one each"),
    ],
)
def test_what_is_no_distribution_is_refused(q: list[Any], problem: str) -> None:
    """The rejection rule is exact only over true distributions that the drafted token can come from."""
    error = refusal(draft((1,), *q))
    assert isinstance(error, InvalidRequest)
    assert {"field": "distributions"} == error.details
    assert str(error).startswith("distributions: ") and problem in str(error)


def test_infinities_of_both_signs_are_no_distribution() -> None:
    """Probabilities whose sum is not even defined are refused like any others."""
    error = refusal(draft((1,), ((1, 2), (math.inf, -math.inf))))
    assert isinstance(error, InvalidRequest) and {"field": "distributions"} == error.details


def test_a_distribution_rounded_to_float32_is_accepted() -> None:
    """Sums are compared with a tolerance that the wire's number format needs."""
    message = codec.verify_request_from_proto(draft((1,), ((1, 2, 3), (1 / 3,) * 3)))
    assert isinstance(message, Draft) and message.q is not None
    assert (1, 2, 3) == message.q[0].token_ids


def test_a_draft_beyond_its_limit_is_refused() -> None:
    """One message holds MAX_DRAFT_TOKENS tokens and not one more."""
    assert isinstance(codec.verify_request_from_proto(draft((1,) * MAX_DRAFT_TOKENS)), Draft)
    error = refusal(draft((1,) * (MAX_DRAFT_TOKENS + 1)))
    assert f"token_ids: has {MAX_DRAFT_TOKENS + 1} tokens, a draft holds {MAX_DRAFT_TOKENS} at most" == str(error)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -1.0, 3600.5])
def test_absurd_durations_read_as_nan(seconds: float) -> None:
    """Reported durations affect the reporter's own share only: nonsense is no reason to refuse, only to ignore it."""
    message = codec.verify_request_from_proto(draft((), draft_seconds=seconds))
    assert isinstance(message, Draft) and math.isnan(message.draft_seconds)
    message = codec.verify_request_from_proto(opening(draft_seconds_per_token=seconds, round_trip_seconds=seconds))
    assert isinstance(message, Open)
    assert math.isnan(message.draft_seconds_per_token) and math.isnan(message.round_trip_seconds)
    shadow = verification_pb2.VerifyRequest(shadow=verification_pb2.Shadow(draft_seconds_per_token=seconds))
    message = codec.verify_request_from_proto(shadow)
    assert isinstance(message, Shadow) and math.isnan(message.draft_seconds_per_token)


@pytest.mark.parametrize(
    ("fields", "field", "problem"),
    [
        ({"temperature": -0.5}, "temperature", "is -0.5, must be between 0 and 100"),
        ({"temperature": 100.5}, "temperature", "is 100.5, must be between 0 and 100"),
        ({"temperature": math.nan}, "temperature", "is nan, must be between 0 and 100"),
        ({"temperature": math.inf}, "temperature", "is inf, must be between 0 and 100"),
        ({"top_p": 0.0}, "top_p", "is 0.0, must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p", "is 1.5, must be above 0 and at most 1"),
        ({"top_p": math.nan}, "top_p", "is nan, must be above 0 and at most 1"),
        ({"min_p": -0.1}, "min_p", "is -0.1, must be between 0 and 1"),
        ({"min_p": math.nan}, "min_p", "is nan, must be between 0 and 1"),
        ({"max_tokens": 0}, "max_tokens", "is 0, must be at least 1"),
        ({"stop": ["x"] * 17}, "stop", "is 17, must be 16 strings at most"),
        ({"stop": ["x", ""]}, "stop", "is '', must be strings of at least one character"),
    ],
)
def test_sampling_out_of_range_is_refused_by_name(fields: dict[str, Any], field: str, problem: str) -> None:
    """A parameter outside its range gives the field, the value and the limit, on either service."""
    sampling = common_pb2.SamplingParams(**{"max_tokens": 8, "temperature": 0.5, "top_p": 1.0} | fields)
    error = refusal(opening(sampling))
    assert isinstance(error, InvalidRequest)
    assert ({"field": field}, f"{field}: {problem}") == (error.details, str(error))
    with pytest.raises(InvalidRequest) as caught:
        codec.generate_request_from_proto(generation_pb2.GenerateRequest(prompt="x", sampling=sampling))
    assert str(error) == str(caught.value)


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_seeds_of_64_bits_pass_both_ends(seed: int) -> None:
    """Seeds are unsigned 64-bit integers, and 0 is a seed, not the lack of one."""
    params = SamplingParams(seed=seed)
    proto = common_pb2.SamplingParams.FromString(codec.sampling_to_proto(params).SerializeToString())
    assert seed == codec.sampling_from_proto(proto).seed
    assert codec.sampling_from_proto(codec.sampling_to_proto(SamplingParams())).seed is None


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_beyond_64_bits_are_refused(seed: int) -> None:
    """A seed that the wire cannot carry never gets there."""
    with pytest.raises(InvalidRequest, match=f"seed: is {seed}, must be an unsigned 64-bit integer"):
        SamplingParams(seed=seed)


def test_a_request_id_beyond_its_limit_is_refused() -> None:
    """Request ids have 128 characters at most, whatever the service."""
    assert isinstance(codec.verify_request_from_proto(opening(request_id="é" * 128)), Open)
    error = refusal(opening(request_id="x" * 129))
    assert isinstance(error, InvalidRequest)
    assert "request_id: has 129 characters, at most 128" == str(error)
    with pytest.raises(InvalidRequest, match="request_id: has 129 characters, at most 128"):
        codec.generate_request_from_proto(
            generation_pb2.GenerateRequest(prompt="x", sampling=SAMPLING, request_id="x" * 129)
        )


def test_an_empty_prompt_is_refused() -> None:
    """There is nothing to go on from without a token, on either service."""
    error = refusal(opening(prompt_token_ids=[]))
    assert "prompt_token_ids: is empty, must hold at least one token" == str(error)
    for proto in (
        generation_pb2.GenerateRequest(sampling=SAMPLING),
        generation_pb2.GenerateRequest(sampling=SAMPLING, prompt=""),
        generation_pb2.GenerateRequest(sampling=SAMPLING, prompt_token_ids=generation_pb2.TokenIds()),
        generation_pb2.GenerateRequest(sampling=SAMPLING, chat=generation_pb2.ChatMessages()),
    ):
        with pytest.raises(InvalidRequest):
            codec.generate_request_from_proto(proto)


def test_a_shadow_cannot_accept_more_than_it_tested() -> None:
    """Shadow acceptance is a share."""
    proto = verification_pb2.VerifyRequest(shadow=verification_pb2.Shadow(tested=2, accepted=3))
    error = refusal(proto)
    assert ({"field": "accepted"}, "accepted: is 3, at most the 2 tested") == (error.details, str(error))


def test_a_mode_that_is_not_known_is_the_servers_fault() -> None:
    """Unlike a finish reason or a token kind, a drafter cannot go on with a mode it does not know."""
    verdict = verification_pb2.Verdict(mode=9, grant=verification_pb2.Grant(mode=common_pb2.MODE_LOCAL))
    with pytest.raises(InternalError, match="mode 9"):
        codec.verify_response_from_proto(verification_pb2.VerifyResponse(verdict=verdict))
    opened = verification_pb2.Opened(grant=verification_pb2.Grant())
    with pytest.raises(InternalError, match="mode 0"):
        codec.verify_response_from_proto(verification_pb2.VerifyResponse(opened=opened))


def test_reasons_and_kinds_of_a_newer_server_are_read_as_the_nearest() -> None:
    """What a newer server adds there does not break an older client."""
    completed = generation_pb2.GenerateResponse(completed=generation_pb2.Completed(reason=77))
    assert FinishReason.ERROR == codec.event_from_proto(completed).reason  # type: ignore[union-attr]
    tokens = generation_pb2.GenerateResponse(tokens=generation_pb2.Tokens(token_ids=[1], kinds=[77]))
    assert (TokenKind.TARGET,) == codec.event_from_proto(tokens).kinds  # type: ignore[union-attr]


def test_survivals_are_clamped_and_counted() -> None:
    """Estimates decide only whose tail is cut: no refusal for odd values, but one for each token, or none at all."""
    odd = codec.verify_request_from_proto(draft((1, 2, 3, 4, 5), survival=[7.0, 0.5, 0.75, math.nan, -math.inf]))
    assert isinstance(odd, Draft)
    assert (1.0, 0.5, 0.5, 0.0, 0.0) == odd.survival
    error = refusal(draft((1, 2), survival=[0.5]))
    assert isinstance(error, InvalidRequest) and "has 1 entries for 2 tokens" in str(error)
