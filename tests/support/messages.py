"""Hypothesis strategies for what crosses the wire: every value they give is valid, and survives the way there and back."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import strategies as st

from specfleet.core.generation import MAX_REQUEST_ID, ChatMessage, Completed, GenerationRequest, Started, Tokens
from specfleet.core.protocol import MAX_DRAFT_TOKENS, Close, Draft, Finished, Open, Opened, Shadow, Verdict
from specfleet.core.step import Alternative, DraftDistribution
from specfleet.core.types import (
    DRAFT_SUPPORT_LIMIT,
    FinishReason,
    Grant,
    Load,
    Mode,
    ModelInfo,
    SamplingParams,
    Speculation,
    TokenKind,
    TopLogprobs,
    Usage,
)

COUNTS = st.integers(0, 2**32 - 1)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
REQUEST_IDS = st.text(st.characters(codec="utf-8"), max_size=MAX_REQUEST_ID)
SECONDS = st.floats(0, 3600, width=32)


def ids(least: int = 0, most: int = 20) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(COUNTS, min_size=least, max_size=most).map(tuple)


def optional_floats(count: int) -> st.SearchStrategy[tuple[float, ...] | None]:
    """Log-probabilities; none at all reads the same as not asked for."""
    values = st.lists(st.floats(-100, 0, width=32), min_size=count, max_size=count).map(tuple)
    return st.none() if count == 0 else st.none() | values


SAMPLING = st.builds(
    lambda told, **others: SamplingParams(logprobs=told >= 0, top_logprobs=max(told, 0), **others),
    told=st.integers(-1, SamplingParams.MAX_TOP_LOGPROBS),
    max_tokens=st.integers(1, 2**32 - 1),
    temperature=st.floats(0, 100),
    top_k=COUNTS,
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    seed=st.none() | st.integers(0, 2**64 - 1),
    stop=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=5), max_size=16),
    stop_token_ids=ids(),
    ignore_eos=st.booleans(),
)
GRANTS = st.builds(Grant, st.sampled_from(Mode), COUNTS, COUNTS, st.floats(0, 1e6, width=32))
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS)
MODELS = st.builds(ModelInfo, TEXTS, COUNTS, st.binary(max_size=32), COUNTS, ids(), TEXTS, TEXTS)
LOADS = st.builds(Load, COUNTS, COUNTS, st.integers(0, 2**64 - 1), st.floats(0, 1e6, width=32))

OPENS = st.builds(
    Open,
    prompt=ids(1),
    sampling=SAMPLING,
    output=ids(),
    request_id=REQUEST_IDS,
    service_class=TEXTS,
    model=TEXTS,
    vocabulary_digest=st.binary(max_size=32),
    vocabulary_checksums=st.binary(max_size=40),
    can_draft=st.booleans(),
    draft_seconds_per_token=SECONDS,
    round_trip_seconds=SECONDS,
).map(lambda one: replace(one, output=one.output[: one.sampling.max_tokens]))


@st.composite
def distributions(draw: st.DrawFn, token: int) -> DraftDistribution:
    """A distribution that holds `token`; its probabilities are powers of two, so that no rounding is in the way."""
    others = draw(st.lists(COUNTS.filter(lambda one: one != token), max_size=DRAFT_SUPPORT_LIMIT - 1, unique=True))
    size = len(others) + 1
    chances = [2.0 ** -min(n, size - 1) for n in range(1, size + 1)] if size > 1 else [1.0]
    assert math.isclose(1, math.fsum(chances))
    return DraftDistribution(tuple(draw(st.permutations([token, *others]))), tuple(draw(st.permutations(chances))))


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    with_q = draw(st.booleans())
    tokens = draw(ids(int(with_q), 4) if with_q else ids(0, MAX_DRAFT_TOKENS))
    q = tuple(draw(distributions(token)) for token in tokens) if with_q else None
    return Draft(
        position=draw(COUNTS),
        tokens=tokens,
        confirmed=draw(COUNTS),
        last=draw(st.booleans()),
        q=q,
        draft_seconds=draw(SECONDS),
        survival=draw(survivals(len(tokens))),
        alternatives=() if with_q or not tokens else draw(alternatives(tokens)),
    )


@st.composite
def alternatives(draw: st.DrawFn, drafted: tuple[int, ...]) -> tuple[Alternative, ...]:
    places = st.builds(Alternative, st.integers(0, len(drafted) - 1), COUNTS)
    others = places.filter(lambda one: drafted[one.offset] != one.token)
    return tuple(draw(st.lists(others, max_size=8, unique=True)))


def verdict(mode: Mode, drafted: int, accepted: int, committed: int) -> Verdict:
    """With tokens that mean nothing."""
    return Verdict(0, (7,) * committed, drafted, accepted, Grant(mode), mode)


def survivals(count: int) -> st.SearchStrategy[tuple[float, ...] | None]:
    """Chances that never rise."""
    chances = st.lists(st.floats(0, 1, width=32), min_size=count, max_size=count)
    return st.none() if count == 0 else st.none() | chances.map(lambda one: tuple(sorted(one, reverse=True)))


def places(count: int) -> st.SearchStrategy[tuple[TopLogprobs, ...] | None]:
    """The likeliest tokens in each of `count` places; none at all where there are none."""
    one = st.lists(st.tuples(COUNTS, st.floats(-100, 0, width=32)), min_size=1, max_size=3).map(tuple)
    return st.lists(one, min_size=count, max_size=count).map(lambda found: tuple(found) or None)


@st.composite
def shadows(draw: st.DrawFn) -> Shadow:
    tested = draw(COUNTS)
    return Shadow(
        position=draw(COUNTS),
        tested=tested,
        accepted=draw(st.integers(0, tested)),
        draft_seconds_per_token=draw(SECONDS),
    )


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    tokens = draw(ids())
    return Verdict(
        position=draw(COUNTS),
        tokens=tokens,
        drafted=draw(COUNTS),
        accepted=draw(COUNTS),
        grant=draw(GRANTS),
        mode=draw(st.sampled_from(Mode)),
        logprobs=draw(optional_floats(len(tokens))),
        trimmed=draw(COUNTS),
        alternatives=draw(COUNTS),
        alternative_accepted=draw(st.booleans()),
        top_logprobs=draw(st.none() | places(len(tokens))),
    )


OPENED = st.builds(Opened, grant=GRANTS, model=MODELS, prompt_tokens=COUNTS, cached_tokens=COUNTS, verifier=TEXTS)
FINISHED = st.builds(Finished, st.sampled_from(FinishReason), USAGES)
REQUESTS = OPENS | drafts() | shadows() | st.just(Close())
RESPONSES = OPENED | verdicts() | FINISHED

SOME_TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
_INPUTS = st.one_of(
    st.fixed_dictionaries({"prompt": SOME_TEXT}),
    st.fixed_dictionaries({"prompt_token_ids": ids(1)}),
    st.fixed_dictionaries({"chat": st.lists(st.builds(ChatMessage, TEXTS, TEXTS), min_size=1, max_size=3).map(tuple)}),
)
GENERATIONS = _INPUTS.flatmap(
    lambda given: st.builds(
        GenerationRequest,
        sampling=SAMPLING,
        request_id=REQUEST_IDS,
        service_class=TEXTS,
        model=TEXTS,
        output_token_ids=ids(),
        target_only=st.booleans(),
        **{key: st.just(value) for key, value in given.items()},
    )
).map(lambda one: replace(one, output_token_ids=one.output_token_ids[: one.sampling.max_tokens]))


@st.composite
def tokens(draw: st.DrawFn) -> Tokens:
    count = draw(st.integers(0, 5))
    kinds = tuple(draw(st.lists(st.sampled_from(TokenKind), min_size=count, max_size=count)))
    lengths = tuple(draw(st.lists(COUNTS, min_size=count, max_size=count)))
    mode = draw(st.none() | st.sampled_from(Mode))
    logprobs, top = draw(optional_floats(count)), draw(st.none() | places(count))
    return Tokens(draw(ids(count, count)), draw(TEXTS), kinds, logprobs, lengths, draw(COUNTS), mode, top)


SPECULATIONS = st.builds(
    Speculation,
    rounds=COUNTS,
    drafted=COUNTS,
    accepted=COUNTS,
    target_only_tokens=COUNTS,
    resumes=COUNTS,
    modes=st.fixed_dictionaries({mode.value: COUNTS for mode in Mode}),
    lengths=ids().map(list),
)
EVENTS = (
    st.builds(Started, REQUEST_IDS, TEXTS, TEXTS, TEXTS, TEXTS, COUNTS)
    | tokens()
    | st.builds(Completed, st.sampled_from(FinishReason), USAGES, SPECULATIONS)
)
