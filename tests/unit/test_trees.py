"""Token trees outside the engine: which alternatives are sent, how they wait, who may have them verified, what peers say."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from drafter.alternatives import LEAST_GAIN, worth_sending
from drafter.config import DrafterConfig
from drafter.early_stop import EarlyStop
from drafter.speculators import Guess
from scheduler import ItemOutcome, Outcome, PlanItem, Scheduler, SchedulerConfig
from scheduler.scheduler import ALTERNATIVES, DEAREST_ALTERNATIVE
from scheduler.step_profile import StepProfile
from specfleet.core.errors import InvalidRequest
from specfleet.core.protocol import MAX_ALTERNATIVES, Draft, Open, Opened, Verdict
from specfleet.core.step import Alternative, StepResult
from specfleet.core.types import Mode, SamplingParams, ServiceClass
from specfleet.v1 import verification_pb2 as pb
from specfleet.wire.codec import verify_request_from_proto
from support.engine import VOCABULARY, reference, target_rule
from support.fleet import GREEDY, TABLE, fleet
from verifier.session import Session

# --- which are sent --------------------------------------------------------------------------------------------------


def guess(chance: float, runner_up: float, alternative: bool = False) -> Guess:
    return Guess(1, chance=chance, runner_up_chance=runner_up, alternative=alternative)


def test_the_most_promising_places_are_sent() -> None:
    """Gains s (1 - c) r of 0.25, 0.10, 0.16 and 0.04: the best two, in order; all four where there is room; none that costs
    more than it promises; none at all of a sure draft."""
    ahead = [guess(0.5, 0.5), guess(0.5, 0.4), guess(0.2, 0.8), guess(0.2, 1.0)]
    assert [0, 2] == worth_sending(ahead, 0, 2, 0.0)
    assert [0, 1, 2, 3] == worth_sending(ahead, 0, 9, 0.0)
    assert [0, 2] == worth_sending(ahead, 0, 9, 0.15)
    assert [] == worth_sending(ahead, 0, 9, 0.3)
    assert [] == worth_sending([guess(0.99, 0.9)] * 4, 0, 9, 0.0)
    assert LEAST_GAIN > 0.01


def test_what_is_on_its_way_counts_against_the_grant() -> None:
    """Only what was not sent yet gets alternatives, and those that were sent take their part of the grant."""
    ahead = [guess(0.5, 0.5, alternative=True), guess(0.5, 0.5), guess(0.5, 0.5)]
    assert [1, 2] == worth_sending(ahead, 1, 3, 0.0)
    assert [1] == worth_sending(ahead, 1, 2, 0.0)
    assert [] == worth_sending(ahead, 1, 1, 0.0)


@pytest.mark.parametrize(
    ("settings", "message"), [({"model": "ngram"}, "--trees needs a draft model"), ({"early_stop": False}, "learns")]
)
def test_a_drafter_that_knows_nothing_of_its_doubts_has_no_trees(settings: dict[str, Any], message: str) -> None:
    """Lookup has no second choice, and without what is learnt nobody knows what pays."""
    with pytest.raises(ValueError, match=message):
        DrafterConfig(**{"model": "m", "trees": True, **settings})
    assert not DrafterConfig(model="m").trees


# --- how they wait ---------------------------------------------------------------------------------------------------


def session(sampling: SamplingParams = GREEDY, max_tokens: int = 40) -> Session:
    async def make() -> Session:
        return Session(1, Open(prompt=(1, 2), sampling=replace(sampling, max_tokens=max_tokens)), (), 1000)

    return asyncio.run(make())


def draft(position: int, *tokens: int, confirmed: int = 2, alternatives: tuple[tuple[int, int], ...] = ()) -> Draft:
    return Draft(position, tokens, confirmed, alternatives=tuple(Alternative(*one) for one in alternatives))


def test_they_wait_beside_their_tokens() -> None:
    """In order of their places, counted from the text's end, as many as asked for, of the part of the draft that is taken;
    said twice they are there once."""
    one = session()
    said = draft(2, 5, 6, 7, alternatives=((2, 9), (0, 8), (0, 4)))
    for _ in range(2):
        assert 0 == one.offer(said).stale
    assert 3 == one.alternatives
    assert [Alternative(0, 8), Alternative(0, 4), Alternative(2, 9)] == one.take_alternatives(3, 9)
    assert [Alternative(0, 8)] == one.take_alternatives(3, 1)
    assert [Alternative(0, 8), Alternative(0, 4)] == one.take_alternatives(2, 9)
    one.offer(draft(5, 3, alternatives=((0, 2),)))
    assert Alternative(3, 2) in one.take_alternatives(4, 9)


def test_they_go_with_their_tokens() -> None:
    """Committed past, cut off, contradicted or said anew: gone, and counted where they were never verified."""
    one = session()
    one.offer(draft(2, 5, 6, 7, alternatives=((0, 8), (2, 9))))
    one.take_draft(1)
    verdict = one.commit(StepResult(1, (5, 6)), 1, alternatives=1)
    assert (1, 1, 1, False) == (verdict.drafted, verdict.accepted, verdict.alternatives, verdict.alternative_accepted)
    assert [Alternative(0, 9)] == one.take_alternatives(1, 9)
    # The newest word wins: the old tail had one token and one alternative.
    assert 2 == one.offer(draft(4, 3, confirmed=4, alternatives=((0, 1),))).stale
    assert [Alternative(0, 1)] == one.take_alternatives(1, 9)
    one.take_draft(0)
    one.commit(StepResult(0, (4,)), 0)
    assert 0 == one.alternatives
    assert 2 == one.offer(draft(5, confirmed=5)).stale


def test_a_rescued_round_commits_one_more() -> None:
    """Accepted, the alternative, and the target's own; cut off at max_tokens, the alternative may be all that counts."""
    for room, kept in ((40, (5, 8, 3)), (3, (5, 8, 3)), (2, (5, 8)), (1, (5,))):
        one = session(max_tokens=room)
        one.offer(draft(2, 5, 6, 7, alternatives=((1, 8),)))
        drafted, taken = one.take_draft(3)[0], one.take_alternatives(3, 4)
        verdict = one.commit(StepResult(1, (5, 8, 3), alternative=True), len(drafted), len(taken))
        assert kept == verdict.tokens == tuple(one.tokens[2:])
        assert (1, len(kept) > 1) == (verdict.accepted, verdict.alternative_accepted)
        assert min(2, len(kept)) == verdict.right


# --- who may have them verified --------------------------------------------------------------------------------------

PROFILE = StepProfile(fixed=0.01, per_token=0.001, per_cached=0.0, per_pair=0.0)


def loaded(sessions: int, seconds: float, **config: Any) -> Scheduler:
    """Sessions that get two tokens each every `seconds`."""
    one = Scheduler(SchedulerConfig(speculation="fixed:4", batching="fifo", profile=PROFILE, **config))
    for number in range(sessions):
        one.open(number, known=10, computed=9, can_draft=True, now=0.0)
    for step in range(20):
        items = tuple(ItemOutcome(number, 1, 4, 1, 2, 0) for number in range(sessions))
        tokens = sum(item.tokens for item in items)
        one.commit(Outcome(items, 0.01 + 0.001 * tokens), now=seconds * step)
    return one


def test_a_token_costs_its_time_at_everybodys_rate() -> None:
    """2 tokens in 0.1 s: a millisecond is worth 0.02 tokens. Sixteen sessions at that pace make it 0.32, too dear for
    alternatives; a verifier that has little to do grants them again."""
    few, many = loaded(1, 0.1), loaded(16, 0.1)
    assert 0.02 == pytest.approx(few.token_cost, rel=0.15)
    assert 0.32 == pytest.approx(many.token_cost, rel=0.15)
    assert many.token_cost > DEAREST_ALTERNATIVE
    for one, granted in ((few, ALTERNATIVES), (many, 0)):
        (record, *_) = one
        assert (Mode.ROUND, 4, granted) == (record.grant.mode, record.grant.length, record.grant.alternatives)
        assert record.grant.token_cost == pytest.approx(one.token_cost)


def test_a_step_takes_what_was_granted_and_fits() -> None:
    """Never more than the grant, the step's tokens or the pages; none where somebody has a deadline, or under load."""
    one = loaded(1, 0.1, max_step_tokens=16)
    record = next(iter(one))
    one.drafted(0, 4, True, 9.0, alternatives=9)
    assert (PlanItem(0, 1, 4, True, ALTERNATIVES),) == one.plan(9.0, 100).items
    # 50 tokens are known and 49 computed: 15 fit on the last page, then none.
    assert (50, 49) == (record.known, record.computed)
    assert (PlanItem(0, 1, 4, True, ALTERNATIVES),) == one.plan(9.0, 0).items
    one.drafted(0, 4, True, 9.0, alternatives=2)
    assert (PlanItem(0, 1, 4, True, 2),) == one.plan(9.0, 100).items
    short = loaded(1, 0.1, max_step_tokens=6)
    short.drafted(0, 4, True, 9.0, alternatives=9)
    assert (PlanItem(0, 1, 4, True, 1),) == short.plan(9.0, 100).items
    service = ServiceClass("chat", tpot_seconds=0.5)
    one.open(5, known=10, computed=9, can_draft=False, now=9.0, service=service)
    one.drafted(0, 4, True, 9.0, alternatives=2)
    assert 0 == sum(item.alternatives for item in one.plan(9.0, 100).items)
    many = loaded(16, 0.1)
    many.drafted(0, 4, True, 9.0, alternatives=4)
    assert 0 == sum(item.alternatives for item in many.plan(9.0, 100).items)


# --- what peers say --------------------------------------------------------------------------------------------------


def proto(tokens: tuple[int, ...], *alternatives: tuple[int, int], q: bool = False) -> pb.VerifyRequest:
    distributions = [pb.DraftDistribution(token_ids=[token], probabilities=[1.0]) for token in tokens] if q else []
    others = [pb.Alternative(offset=offset, token_id=token) for offset, token in alternatives]
    said = pb.Draft(position=2, confirmed=2, token_ids=tokens, alternatives=others, distributions=distributions)
    return pb.VerifyRequest(draft=said)


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        (proto((5, 6), (2, 7)), "place 2 of 2"),
        (proto((), (0, 7)), "place 0 of 0"),
        (proto((5, 6), (1, 6)), "repeats the drafted token 6 at place 1"),
        (proto((5, 6), (1, 7), (1, 7)), "twice"),
        (proto((5,), *((0, 6 + n) for n in range(MAX_ALTERNATIVES + 1))), f"{MAX_ALTERNATIVES} at most"),
        (proto((5,), (0, 7), q=True), "no seed"),
    ],
)
def test_alternatives_that_cannot_be_are_refused(message: pb.VerifyRequest, wrong: str) -> None:
    """Each with the field and the limit."""
    with pytest.raises(InvalidRequest, match=f"alternatives: .*{wrong}"):
        verify_request_from_proto(message)


def test_without_a_seed_there_are_none() -> None:
    """The rejection rule knows no trees."""
    with pytest.raises(InvalidRequest, match="alternatives"):
        session(SamplingParams()).offer(draft(2, alternatives=())._replace(alternatives=(Alternative(0, 1),)))


@pytest.mark.asyncio
async def test_a_drafter_with_too_many_gets_no_more_verified_than_granted() -> None:
    """Fifty alternatives for one place, the right one last: the step takes what was granted, and the text is the target's.
    One beyond the vocabulary ends the stream."""
    async with fleet("fixed:2", draft_wait_seconds=30) as one:
        stream = await one.connection.verify()
        await stream.send(Open(prompt=(1, 2), sampling=GREEDY, vocabulary_digest=TABLE.digest()))
        opened = await stream.receive()
        assert isinstance(opened, Opened) and ALTERNATIVES == opened.grant.alternatives
        right = target_rule([1, 2])
        first = await stream.receive()
        assert isinstance(first, Verdict)
        assert (right,) == first.tokens
        text = [1, 2, right]
        drafted, *others = (token for token in range(VOCABULARY) if token != target_rule(text))
        places = tuple(Alternative(0, token) for token in (*others, target_rule(text)))
        await stream.send(Draft(3, (drafted,), 3, last=True, alternatives=places))
        verdict = await stream.receive()
        assert isinstance(verdict, Verdict)
        assert ALTERNATIVES == verdict.alternatives
        assert tuple(reference([1, 2], 1 + len(verdict.tokens))[1:]) == verdict.tokens
        at = 3 + len(verdict.tokens)
        beyond = (Alternative(0, VOCABULARY),)
        await stream.send(Draft(at, (0,), at, last=True, alternatives=beyond))
        with pytest.raises(InvalidRequest, match=f"alternatives: holds {VOCABULARY}"):
            while await stream.receive() is not None:
                pass


@pytest.mark.asyncio
async def test_a_verifier_that_grants_none_is_sent_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not know of trees says nothing of them, which is the same."""
    monkeypatch.setattr("scheduler.scheduler.ALTERNATIVES", 0)
    async with fleet("fixed:4", rightness=5, early=EarlyStop(), trees=True) as one:
        assert reference([1, 2, 3], 40) == await one.generate([1, 2, 3])
        drafts = [message for message in one.connection.seen if isinstance(message, Draft)]
    assert drafts and not any(one.alternatives for one in drafts)
