"""proto <-> core, both ways, for both services. Everything from the wire is checked here; what passes is well-formed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate

from specfleet.core.errors import ConfigurationError, InternalError, InvalidRequest, ModelMismatch
from specfleet.core.generation import (
    MAX_REQUEST_ID,
    ChatMessage,
    Completed,
    Event,
    GenerationRequest,
    Started,
    Tokens,
)
from specfleet.core.protocol import (
    MAX_ALTERNATIVES,
    MAX_DRAFT_TOKENS,
    Close,
    Draft,
    Finished,
    Open,
    Opened,
    Shadow,
    Verdict,
    VerifyRequest,
    VerifyResponse,
)
from specfleet.core.step import Alternative, DraftDistribution
from specfleet.core.types import (
    DRAFT_SUPPORT_LIMIT,
    MIN_PROTOCOL_VERSION,
    PROTOCOL_VERSION,
    FinishReason,
    Grant,
    Load,
    Mode,
    ModelInfo,
    SamplingParams,
    ServiceClass,
    Speculation,
    TokenKind,
    TopLogprobs,
    Usage,
)
from specfleet.v1 import common_pb2, generation_pb2, verification_pb2
from specfleet.wire import limits

_MODE_TO_PROTO = {
    Mode.LOCAL: common_pb2.MODE_LOCAL,
    Mode.STREAM: common_pb2.MODE_STREAM,
    Mode.ROUND: common_pb2.MODE_ROUND,
}
_MODE_FROM_PROTO: dict[int, Mode] = {number: mode for mode, number in _MODE_TO_PROTO.items()}
_REASON_TO_PROTO = {
    FinishReason.STOP: common_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: common_pb2.FINISH_REASON_CANCELLED,
    FinishReason.ERROR: common_pb2.FINISH_REASON_ERROR,
}
_REASON_FROM_PROTO: dict[int, FinishReason] = {number: reason for reason, number in _REASON_TO_PROTO.items()}
_KIND_TO_PROTO = {
    TokenKind.ACCEPTED: generation_pb2.TOKEN_KIND_ACCEPTED,
    TokenKind.RECOVERED: generation_pb2.TOKEN_KIND_RECOVERED,
    TokenKind.BONUS: generation_pb2.TOKEN_KIND_BONUS,
    TokenKind.TARGET: generation_pb2.TOKEN_KIND_TARGET,
}
_KIND_FROM_PROTO: dict[int, TokenKind] = {number: kind for kind, number in _KIND_TO_PROTO.items()}


# --- Verify ----------------------------------------------------------------------------------------------------------


def verify_request_to_proto(message: VerifyRequest) -> verification_pb2.VerifyRequest:
    match message:
        case Draft():
            proto = verification_pb2.Draft(
                position=message.position,
                token_ids=message.tokens,
                confirmed=message.confirmed,
                last=message.last,
                draft_seconds=message.draft_seconds,
                survival=message.survival or (),
                distributions=[
                    verification_pb2.DraftDistribution(token_ids=q.token_ids, probabilities=q.probabilities)
                    for q in message.q or ()
                ],
                alternatives=[
                    verification_pb2.Alternative(offset=one.offset, token_id=one.token) for one in message.alternatives
                ],
                beside=message.beside,
            )
            return verification_pb2.VerifyRequest(draft=proto)
        case Open():
            return verification_pb2.VerifyRequest(open=_open_to_proto(message))
        case Shadow():
            shadow = verification_pb2.Shadow(
                position=message.position,
                tested=message.tested,
                accepted=message.accepted,
                draft_seconds_per_token=message.draft_seconds_per_token,
            )
            return verification_pb2.VerifyRequest(shadow=shadow)
        case Close():
            return verification_pb2.VerifyRequest(close=verification_pb2.Close())


def _open_to_proto(message: Open) -> verification_pb2.Open:
    return verification_pb2.Open(
        protocol_version=message.protocol_version,
        request_id=message.request_id,
        prompt_token_ids=message.prompt,
        output_token_ids=message.output,
        sampling=sampling_to_proto(message.sampling),
        service_class=message.service_class,
        vocabulary_digest=message.vocabulary_digest,
        vocabulary_checksums=message.vocabulary_checksums,
        model=message.model,
        can_draft=message.can_draft,
        draft_seconds_per_token=message.draft_seconds_per_token,
        round_trip_seconds=message.round_trip_seconds,
    )


def verify_request_from_proto(proto: verification_pb2.VerifyRequest) -> VerifyRequest:
    """Raises InvalidRequest (or ModelMismatch for a foreign protocol version) for what is not well-formed."""
    match proto.WhichOneof("message"):
        case "draft":
            return _draft_from_proto(proto.draft)
        case "open":
            return _open_from_proto(proto.open)
        case "shadow":
            return _shadow_from_proto(proto.shadow)
        case "close":
            return Close()
        case _:
            raise InvalidRequest.field("message", "is empty, must be one of open, draft, shadow and close")


def _open_from_proto(proto: verification_pb2.Open) -> Open:
    if not MIN_PROTOCOL_VERSION <= proto.protocol_version <= PROTOCOL_VERSION:
        raise ModelMismatch(
            f"protocol version {proto.protocol_version} is not spoken here: this server speaks "
            f"{MIN_PROTOCOL_VERSION} to {PROTOCOL_VERSION}; install matching specfleet versions on both sides"
        )
    _check_request_id(proto.request_id)
    limits.check_open(proto)
    if not proto.prompt_token_ids:
        raise InvalidRequest.field("prompt_token_ids", "is empty, must hold at least one token")
    sampling = sampling_from_proto(proto.sampling)
    return Open(
        prompt=tuple(proto.prompt_token_ids),
        output=_output(proto.output_token_ids, sampling),
        sampling=sampling,
        request_id=proto.request_id,
        service_class=proto.service_class,
        model=proto.model,
        vocabulary_digest=proto.vocabulary_digest,
        vocabulary_checksums=proto.vocabulary_checksums,
        can_draft=proto.can_draft,
        draft_seconds_per_token=_seconds("draft_seconds_per_token", proto.draft_seconds_per_token),
        round_trip_seconds=_seconds("round_trip_seconds", proto.round_trip_seconds),
        protocol_version=proto.protocol_version,
    )


def _draft_from_proto(proto: verification_pb2.Draft) -> Draft:
    tokens = tuple(proto.token_ids)
    if len(tokens) > MAX_DRAFT_TOKENS:
        raise InvalidRequest.field("token_ids", f"has {len(tokens)} tokens, a draft holds {MAX_DRAFT_TOKENS} at most")
    return Draft(
        position=proto.position,
        tokens=tokens,
        confirmed=proto.confirmed,
        last=proto.last,
        q=_distributions(proto, tokens) if proto.distributions else None,
        draft_seconds=_seconds("draft_seconds", proto.draft_seconds),
        survival=_survival(proto.survival, len(tokens)),
        alternatives=_alternatives(proto) if proto.alternatives else (),
        beside=proto.beside,
    )


def _distributions(proto: verification_pb2.Draft, tokens: tuple[int, ...]) -> tuple[DraftDistribution, ...]:
    """One that holds it for each drafted token."""
    q = tuple(_distribution(one) for one in proto.distributions)
    if len(q) != len(tokens):
        raise InvalidRequest.field("distributions", f"has {len(q)} entries for {len(tokens)} tokens, must be one each")
    for token, one in zip(tokens, q, strict=True):
        if token not in one.token_ids:
            raise InvalidRequest.field(
                "distributions", f"does not hold the drafted token {token}; it cannot come from there"
            )
    return q


def _alternatives(proto: verification_pb2.Draft) -> tuple[Alternative, ...]:
    """Each of them another token for a place of this draft, none twice."""
    name, found = "alternatives", tuple(Alternative(one.offset, one.token_id) for one in proto.alternatives)
    if len(found) > MAX_ALTERNATIVES:
        raise InvalidRequest.field(name, f"has {len(found)} entries, a draft holds {MAX_ALTERNATIVES} at most")
    if proto.distributions:
        raise InvalidRequest.field(name, "stands beside distributions, must be empty where sampling has no seed")
    for one in found:
        if one.offset >= len(proto.token_ids):
            raise InvalidRequest.field(
                name, f"names place {one.offset} of {len(proto.token_ids)} drafted tokens, counted from 0"
            )
        if proto.token_ids[one.offset] == one.token:
            raise InvalidRequest.field(name, f"repeats the drafted token {one.token} at place {one.offset}")
    if len(set(found)) != len(found):
        raise InvalidRequest.field(name, "names a token twice for one place")
    return found


def _survival(chances: Sequence[float], tokens: int) -> tuple[float, ...] | None:
    """Estimates, which only ever decide whose tail is cut: what cannot be a chance is taken for the nearest that can, no token
    survives longer than the one before it, and what is not a number survives not at all."""
    if not chances:
        return None
    if len(chances) != tokens:
        raise InvalidRequest.field("survival", f"has {len(chances)} entries for {tokens} tokens, must be one each")
    clamped = (0.0 if math.isnan(one) else min(max(one, 0.0), 1.0) for one in chances)
    return tuple(accumulate(clamped, min))


def _distribution(proto: verification_pb2.DraftDistribution) -> DraftDistribution:
    """Checked: a true distribution over distinct ids, since the rejection rule is exact only then."""
    ids, chances = tuple(proto.token_ids), tuple(proto.probabilities)
    if not 0 < len(ids) == len(chances) <= DRAFT_SUPPORT_LIMIT:
        raise InvalidRequest.field(
            "distributions",
            f"has {len(ids)} ids and {len(chances)} probabilities, must be 1 to {DRAFT_SUPPORT_LIMIT} of each",
        )
    if len(set(ids)) != len(ids):
        raise InvalidRequest.field("distributions", "names a token id twice")
    if not all(math.isfinite(p) and p > 0 for p in chances) or abs(math.fsum(chances) - 1) > 1e-3:
        # sum, since fsum raises over infinities of both signs.
        raise InvalidRequest.field("distributions", f"sums to {sum(chances):g}, must be positive and sum to 1")
    return DraftDistribution(ids, chances)


def _shadow_from_proto(proto: verification_pb2.Shadow) -> Shadow:
    if proto.accepted > proto.tested:
        raise InvalidRequest.field("accepted", f"is {proto.accepted}, at most the {proto.tested} tested")
    return Shadow(
        position=proto.position,
        tested=proto.tested,
        accepted=proto.accepted,
        draft_seconds_per_token=_seconds("draft_seconds_per_token", proto.draft_seconds_per_token),
    )


def verify_response_to_proto(message: VerifyResponse) -> verification_pb2.VerifyResponse:
    match message:
        case Verdict():
            verdict = verification_pb2.Verdict(
                position=message.position,
                token_ids=message.tokens,
                drafted=message.drafted,
                accepted=message.accepted,
                grant=_grant_to_proto(message.grant),
                logprobs=message.logprobs or (),
                mode=_MODE_TO_PROTO[message.mode],
                trimmed=message.trimmed,
                alternatives=message.alternatives,
                alternative_accepted=message.alternative_accepted,
                top_logprobs=_top_to_proto(message.top_logprobs),
            )
            return verification_pb2.VerifyResponse(verdict=verdict)
        case Opened():
            opened = verification_pb2.Opened(
                grant=_grant_to_proto(message.grant),
                model=model_to_proto(message.model),
                prompt_tokens=message.prompt_tokens,
                cached_tokens=message.cached_tokens,
                verifier=message.verifier,
                waited_seconds=message.waited_seconds,
            )
            return verification_pb2.VerifyResponse(opened=opened)
        case Finished():
            finished = verification_pb2.Finished(
                reason=_REASON_TO_PROTO[message.reason], usage=_usage_to_proto(message.usage)
            )
            return verification_pb2.VerifyResponse(finished=finished)


def verify_response_from_proto(proto: verification_pb2.VerifyResponse) -> VerifyResponse:
    match proto.WhichOneof("message"):
        case "verdict":
            verdict = proto.verdict
            return Verdict(
                position=verdict.position,
                tokens=tuple(verdict.token_ids),
                drafted=verdict.drafted,
                accepted=verdict.accepted,
                grant=_grant_from_proto(verdict.grant),
                mode=_mode(verdict.mode),
                logprobs=tuple(verdict.logprobs) or None,
                trimmed=verdict.trimmed,
                alternatives=verdict.alternatives,
                alternative_accepted=verdict.alternative_accepted,
                top_logprobs=_top_from_proto(verdict.top_logprobs),
            )
        case "opened":
            opened = proto.opened
            return Opened(
                grant=_grant_from_proto(opened.grant),
                model=model_from_proto(opened.model),
                prompt_tokens=opened.prompt_tokens,
                cached_tokens=opened.cached_tokens,
                verifier=opened.verifier,
                waited_seconds=opened.waited_seconds,
            )
        case "finished":
            return Finished(_reason(proto.finished.reason), _usage_from_proto(proto.finished.usage))
        case _:
            raise InternalError("the server sent an empty message; its version may not match this one's")


def _grant_to_proto(grant: Grant) -> verification_pb2.Grant:
    return verification_pb2.Grant(
        mode=_MODE_TO_PROTO[grant.mode],
        length=grant.length,
        alternatives=grant.alternatives,
        token_cost=grant.token_cost,
    )


def _grant_from_proto(proto: verification_pb2.Grant) -> Grant:
    return Grant(_mode(proto.mode), proto.length, proto.alternatives, proto.token_cost)


def _mode(number: int) -> Mode:
    if number not in _MODE_FROM_PROTO:
        raise InternalError(
            f"the server named mode {number}, which this version does not know; install matching versions"
        )
    return _MODE_FROM_PROTO[number]


def load_to_proto(load: Load) -> verification_pb2.GetLoadResponse:
    return verification_pb2.GetLoadResponse(
        queue=load.queue, sessions=load.sessions, free_kv_tokens=load.free_kv_tokens, step_seconds=load.step_seconds
    )


def load_from_proto(proto: verification_pb2.GetLoadResponse) -> Load:
    return Load(proto.queue, proto.sessions, proto.free_kv_tokens, proto.step_seconds)


# --- both services ---------------------------------------------------------------------------------------------------


def sampling_to_proto(params: SamplingParams) -> common_pb2.SamplingParams:
    return common_pb2.SamplingParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=params.seed,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        logprobs=params.logprobs,
        top_logprobs=params.top_logprobs,
    )


def sampling_from_proto(proto: common_pb2.SamplingParams) -> SamplingParams:
    """Raises InvalidRequest naming the field that is out of its range."""
    return SamplingParams(
        max_tokens=proto.max_tokens,
        temperature=proto.temperature,
        top_k=proto.top_k,
        top_p=proto.top_p,
        min_p=proto.min_p,
        seed=proto.seed if proto.HasField("seed") else None,
        stop=tuple(proto.stop),
        stop_token_ids=tuple(proto.stop_token_ids),
        ignore_eos=proto.ignore_eos,
        logprobs=proto.logprobs,
        top_logprobs=proto.top_logprobs,
    )


def _top_to_proto(top: Sequence[TopLogprobs] | None) -> list[common_pb2.TopLogprobs]:
    return [
        common_pb2.TopLogprobs(token_ids=[token for token, _ in place], logprobs=[value for _, value in place])
        for place in top or ()
    ]


def _top_from_proto(protos: Iterable[common_pb2.TopLogprobs]) -> tuple[TopLogprobs, ...] | None:
    return tuple(tuple(zip(one.token_ids, one.logprobs, strict=False)) for one in protos) or None


def model_to_proto(model: ModelInfo) -> common_pb2.Model:
    return common_pb2.Model(
        name=model.name,
        vocabulary_size=model.vocabulary_size,
        vocabulary_digest=model.vocabulary_digest,
        context_length=model.context_length,
        eos_token_ids=model.eos_token_ids,
        protocol_version=PROTOCOL_VERSION,
        min_protocol_version=MIN_PROTOCOL_VERSION,
        software=model.software,
        policy=model.policy,
        service_classes=[
            common_pb2.ServiceClass(
                name=one.name, ttft_seconds=one.ttft_seconds, tpot_seconds=one.tpot_seconds, weight=one.weight
            )
            for one in model.service_classes
        ],
    )


def model_from_proto(proto: common_pb2.Model) -> ModelInfo:
    return ModelInfo(
        name=proto.name,
        vocabulary_size=proto.vocabulary_size,
        vocabulary_digest=proto.vocabulary_digest,
        context_length=proto.context_length,
        eos_token_ids=tuple(proto.eos_token_ids),
        software=proto.software,
        policy=proto.policy,
        service_classes=tuple(_service_class_from_proto(one) for one in proto.service_classes),
    )


def _service_class_from_proto(proto: common_pb2.ServiceClass) -> ServiceClass:
    try:
        return ServiceClass(
            proto.name,
            proto.ttft_seconds if proto.HasField("ttft_seconds") else None,
            proto.tpot_seconds if proto.HasField("tpot_seconds") else None,
            proto.weight,
        )
    except ConfigurationError as error:
        raise InternalError(f"the server describes a service class that cannot be: {error}") from None


def _usage_to_proto(usage: Usage) -> common_pb2.Usage:
    return common_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


def _usage_from_proto(proto: common_pb2.Usage) -> Usage:
    return Usage(proto.prompt_tokens, proto.completion_tokens, proto.cached_tokens)


def _reason(number: int) -> FinishReason:
    return _REASON_FROM_PROTO.get(number, FinishReason.ERROR)


def _check_request_id(request_id: str) -> None:
    if len(request_id) > MAX_REQUEST_ID:
        raise InvalidRequest.field("request_id", f"has {len(request_id)} characters, at most {MAX_REQUEST_ID}")


def _output(ids: Sequence[int], sampling: SamplingParams) -> tuple[int, ...]:
    """Output that a generation goes on behind: no more than it may have."""
    if len(ids) > sampling.max_tokens:
        raise InvalidRequest.field(
            "output_token_ids",
            f"has {len(ids)} tokens, more than max_tokens, which is {sampling.max_tokens} for all of it",
        )
    return tuple(ids)


def _seconds(name: str, value: float) -> float:
    """A reported duration: absurd reports (negative, infinite, over an hour) read as NaN, for the receiver to ignore and
    count. They only affect the reporter's own share, so they are no reason to refuse it."""
    return value if math.isfinite(value) and 0.0 <= value <= 3600.0 else math.nan


# --- Generate --------------------------------------------------------------------------------------------------------


def generate_request_to_proto(request: GenerationRequest) -> generation_pb2.GenerateRequest:
    proto = generation_pb2.GenerateRequest(
        request_id=request.request_id,
        sampling=sampling_to_proto(request.sampling),
        service_class=request.service_class,
        model=request.model,
        output_token_ids=request.output_token_ids,
        target_only=request.target_only,
    )
    if request.prompt is not None:
        proto.prompt = request.prompt
    elif request.chat is not None:
        messages = [generation_pb2.ChatMessage(role=one.role, content=one.content) for one in request.chat]
        proto.chat.CopyFrom(generation_pb2.ChatMessages(messages=messages))
    else:
        proto.prompt_token_ids.CopyFrom(generation_pb2.TokenIds(token_ids=request.prompt_token_ids or ()))
    return proto


def generate_request_from_proto(proto: generation_pb2.GenerateRequest) -> GenerationRequest:
    """Raises InvalidRequest for what is not well-formed."""
    limits.check_generate(proto)
    given = proto.WhichOneof("input")
    sampling = sampling_from_proto(proto.sampling)
    return GenerationRequest(
        sampling=sampling,
        prompt=proto.prompt if given == "prompt" else None,
        chat=tuple(ChatMessage(one.role, one.content) for one in proto.chat.messages) if given == "chat" else None,
        prompt_token_ids=tuple(proto.prompt_token_ids.token_ids) if given == "prompt_token_ids" else None,
        request_id=proto.request_id,
        service_class=proto.service_class,
        model=proto.model,
        output_token_ids=_output(proto.output_token_ids, sampling),
        target_only=proto.target_only,
    )


def event_to_proto(event: Event) -> generation_pb2.GenerateResponse:
    match event:
        case Tokens():
            tokens = generation_pb2.Tokens(
                token_ids=event.token_ids,
                text=event.text,
                kinds=[_KIND_TO_PROTO[kind] for kind in event.kinds],
                logprobs=event.logprobs or (),
                text_lengths=event.text_lengths,
                drafted=event.drafted,
                mode=_MODE_TO_PROTO[event.mode] if event.mode is not None else common_pb2.MODE_UNSPECIFIED,
                top_logprobs=_top_to_proto(event.top_logprobs),
            )
            return generation_pb2.GenerateResponse(tokens=tokens)
        case Started():
            started = generation_pb2.Started(
                request_id=event.request_id,
                model=event.model,
                policy=event.policy,
                verifier=event.verifier,
                drafter=event.drafter,
                prompt_tokens=event.prompt_tokens,
            )
            return generation_pb2.GenerateResponse(started=started)
        case Completed():
            completed = generation_pb2.Completed(
                reason=_REASON_TO_PROTO[event.reason],
                usage=_usage_to_proto(event.usage),
                speculation=_speculation_to_proto(event.speculation),
            )
            return generation_pb2.GenerateResponse(completed=completed)


def event_from_proto(proto: generation_pb2.GenerateResponse) -> Event:
    match proto.WhichOneof("message"):
        case "tokens":
            tokens = proto.tokens
            return Tokens(
                token_ids=tuple(tokens.token_ids),
                text=tokens.text,
                kinds=tuple(_KIND_FROM_PROTO.get(kind, TokenKind.TARGET) for kind in tokens.kinds),
                logprobs=tuple(tokens.logprobs) or None,
                text_lengths=tuple(tokens.text_lengths),
                drafted=tokens.drafted,
                mode=_MODE_FROM_PROTO.get(tokens.mode),
                top_logprobs=_top_from_proto(tokens.top_logprobs),
            )
        case "started":
            started = proto.started
            return Started(
                started.request_id,
                started.model,
                started.policy,
                started.verifier,
                started.drafter,
                started.prompt_tokens,
            )
        case "completed":
            completed = proto.completed
            return Completed(
                _reason(completed.reason),
                _usage_from_proto(completed.usage),
                _speculation_from_proto(completed.speculation),
            )
        case _:
            raise InternalError("the server sent an empty message; its version may not match this one's")


def _speculation_to_proto(speculation: Speculation) -> generation_pb2.Speculation:
    return generation_pb2.Speculation(
        rounds=speculation.rounds,
        drafted=speculation.drafted,
        accepted=speculation.accepted,
        target_only_tokens=speculation.target_only_tokens,
        resumes=speculation.resumes,
        local_verdicts=speculation.modes[Mode.LOCAL.value],
        stream_verdicts=speculation.modes[Mode.STREAM.value],
        round_verdicts=speculation.modes[Mode.ROUND.value],
        lengths=speculation.lengths,
    )


def _speculation_from_proto(proto: generation_pb2.Speculation) -> Speculation:
    return Speculation(
        rounds=proto.rounds,
        drafted=proto.drafted,
        accepted=proto.accepted,
        target_only_tokens=proto.target_only_tokens,
        resumes=proto.resumes,
        modes={
            Mode.LOCAL.value: proto.local_verdicts,
            Mode.STREAM.value: proto.stream_verdicts,
            Mode.ROUND.value: proto.round_verdicts,
        },
        lengths=list(proto.lengths),
    )
