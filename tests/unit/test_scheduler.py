"""Policies by name, grants, readiness, and who gives way when pages run out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scheduler import ItemOutcome, Outcome, Plan, PlanItem, Scheduler, SchedulerConfig, SessionRecord, batching
from scheduler import speculation as speculation_policies
from scheduler.batching.fifo import Fifo
from scheduler.budget import StepBudget
from scheduler.step_profile import StepProfile
from scheduler.step_time import StepTimeModel
from scheduler.view import View
from specfleet.core.errors import ConfigurationError
from specfleet.core.types import LOCAL, Grant, Mode

RECORD = SessionRecord(1, 10, 9, True, 0.0, 0.0)
OUTCOME = ItemOutcome(1, fed=1, drafted=4, accepted=2, committed=3, pending=0)


def policy(name: str, seed: int = 0) -> speculation_policies.SpeculationPolicy:
    return speculation_policies.build(name, View(StepTimeModel()), np.random.default_rng(seed))


def grants(name: str, count: int = 50, seed: int = 0) -> list[Grant]:
    one = policy(name, seed)
    return [one.opened(RECORD, 0.0), *(one.decided(RECORD, OUTCOME, float(now)) for now in range(count))]


def scheduler(policy: str = "fixed:4", **config: Any) -> Scheduler:
    return Scheduler(SchedulerConfig(**{"speculation": policy, "batching": "fifo", **config}))


def open_session(
    one: Scheduler, session: int, known: int, computed: int | None = None, now: float = 0.0, can_draft: bool = True
) -> Grant:
    """With `computed` left out, the session is prefilled and has one token to decode from."""
    return one.open(
        session, known=known, computed=known - 1 if computed is None else computed, can_draft=can_draft, now=now
    )


def commit(one: Scheduler, *items: ItemOutcome, now: float = 0.0) -> dict[int, Grant]:
    return one.commit(Outcome(items, 0.01), now)


# --- policies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "grant"),
    [
        ("none", LOCAL),
        ("fixed", Grant(Mode.ROUND, 4)),
        ("fixed:1", Grant(Mode.ROUND, 1)),
        ("fixed:32", Grant(Mode.ROUND, 32)),
        ("stream", Grant(Mode.STREAM, 8)),
        ("stream:3", Grant(Mode.STREAM, 3)),
    ],
)
def test_constant_policies_grant_what_their_name_says(name: str, grant: Grant) -> None:
    """The same mode and length, at the opening and after every verdict."""
    assert {grant} == set(grants(name))


def test_random_draws_all_modes_and_lengths_within_its_limit() -> None:
    """LOCAL has no length, the others 1 to 8, and everything comes up."""
    drawn = grants("random", 2000)
    assert set(Mode) == {grant.mode for grant in drawn}
    assert {0} == {grant.length for grant in drawn if grant.mode is Mode.LOCAL}
    for mode in (Mode.STREAM, Mode.ROUND):
        assert set(range(1, 9)) == {grant.length for grant in drawn if grant.mode is mode}


def test_random_is_a_function_of_its_seed() -> None:
    """The same seed draws the same, another one something else."""
    assert grants("random", seed=3) == grants("random", seed=3)
    assert grants("random", seed=3) != grants("random", seed=4)


@pytest.mark.parametrize("name", ["", "fast", "Fixed:4", "fixed4", ":4"])
def test_an_unknown_policy_names_the_choices(name: str) -> None:
    """Speculation and batching policies by the wrong name say which there are."""
    with pytest.raises(ConfigurationError, match=f"{name!r} is not known; choose one of fair-goodput, goodspeed"):
        policy(name)
    with pytest.raises(ConfigurationError, match=f"{name!r} is not known; choose one of slo, fifo, length-aware"):
        batching.build(name, View(StepTimeModel()))


@pytest.mark.parametrize("kind", ["fixed", "stream"])
@pytest.mark.parametrize("length", ["0", "33", "-1", "4.0", "x", "1e1", " 4"])
def test_a_length_out_of_range_names_its_limits(kind: str, length: str) -> None:
    """fixed:K and stream:K take whole numbers from 1 to 32."""
    with pytest.raises(
        ConfigurationError, match=f"{kind}:{length} is not understood; write {kind}:K with K from 1 to 32"
    ):
        policy(f"{kind}:{length}")


@pytest.mark.parametrize("name", ["none:3", "random:3"])
def test_an_argument_nobody_takes_is_refused(name: str) -> None:
    """A policy without an argument does not ignore one."""
    with pytest.raises(ConfigurationError, match="takes no argument, got '3'"):
        policy(name)


@pytest.mark.parametrize("name", ["fixed", "stream", "random"])
def test_a_session_that_cannot_draft_stays_local(name: str) -> None:
    """Whatever the policy, nobody waits for a drafter that is not there."""
    one = scheduler(name)
    assert LOCAL == open_session(one, 1, 10, can_draft=False)
    assert {1: LOCAL} == commit(one, ItemOutcome(1, 1, 0, 0, 1, 0))


# --- readiness -------------------------------------------------------------------------------------------------------


def test_a_round_waits_for_its_draft_or_its_end_or_its_deadline() -> None:
    """In ROUND a session is planned once the granted number has come, no more will come, or its time is up."""
    one = scheduler("fixed:4", draft_wait_seconds=2.0)
    open_session(one, 1, 10, now=1.0)
    assert Plan(wake_at=3.0) == one.plan(1.0, 100)
    one.drafted(1, 3, False, 1.5)
    assert Plan(wake_at=3.0) == one.plan(2.9, 100)
    assert (PlanItem(1, 1, 3, True),) == one.plan(3.0, 100).items
    one.drafted(1, 3, True, 1.6)
    assert (PlanItem(1, 1, 3, True),) == one.plan(1.6, 100).items
    one.drafted(1, 4, False, 1.6)
    assert (PlanItem(1, 1, 4, True),) == one.plan(1.6, 100).items
    one.drafted(1, 9, False, 1.6)
    assert (PlanItem(1, 1, 4, True),) == one.plan(1.6, 100).items


def test_an_unlikely_tail_is_left_out() -> None:
    """A drafted token whose survival is below what a token of a step costs everybody is not verified now, whatever room there
    is; the first one always is, and where the drafter says nothing, all are. Nor is it once those before it are committed,
    and it is no likelier."""
    one = scheduler("stream:8", profile=StepProfile(0.01, 0.01))
    for number in (1, 2, 3):
        open_session(one, number, 100)
    for step in range(1, 200):
        items = [ItemOutcome(item.session, 1, 0, 0, 1, 0) for item in one.plan(0.04 * step, 10**6).items]
        one.commit(Outcome(tuple(items), 0.04), 0.04 * step)
    cost = one.token_cost
    assert 0.7 < cost < 0.8  # three tokens in 0.04 s, of which one takes a quarter
    one.drafted(1, 5, False, 20.0, chances=(1.0, 1.1 * cost, 0.8, 1.0, 1.0))
    one.drafted(2, 5, False, 20.0, chances=(0.5 * cost, 1.0, 1.0, 1.0, 1.0))
    one.drafted(3, 5, False, 20.0)
    assert {1: 2, 2: 1, 3: 5} == {item.session: item.draft for item in one.plan(20.0, 10**6).items}
    left = ItemOutcome(1, 1, 2, 2, 3, 2, chances=(1.0, 0.9 * cost))
    commit(one, left, now=20.1)
    assert 1 == next(item.draft for item in one.plan(20.1, 10**6).items if item.session == 1)


def test_what_a_token_costs_is_not_forgotten_while_nobody_is_there() -> None:
    """After an hour without a session the next one's tokens cost what the last one's did."""
    one, now = scheduler("none", profile=StepProfile(0.01, 0.01)), 0.0

    def steps(count: int) -> None:
        nonlocal now
        for _ in range(count):
            now += 0.02
            one.commit(Outcome((ItemOutcome(1, 1, 0, 0, 1, 0),), 0.02), now)

    open_session(one, 1, 100)
    steps(400)
    cost = one.token_cost
    one.close(1)
    now += 3600.0
    open_session(one, 1, 100, now=now)
    steps(2)
    assert 0.4 < cost < 0.6
    assert cost == pytest.approx(one.token_cost, rel=0.1)


@pytest.mark.parametrize("name", ["none", "stream"])
def test_local_and_stream_never_wait(name: str) -> None:
    """The verifier decodes every step; drafts go along if there are any."""
    one = scheduler(name)
    open_session(one, 1, 10)
    assert (PlanItem(1, 1, 0, True),) == one.plan(0.0, 100).items


def test_a_local_session_verifies_no_draft() -> None:
    """What was drafted for an earlier grant is left alone in LOCAL."""
    one = scheduler("none")
    open_session(one, 1, 10)
    one.drafted(1, 5, False, 0.0)
    assert (PlanItem(1, 1, 0, True),) == one.plan(0.0, 100).items


def test_prefill_goes_in_chunks_and_ends_in_a_verdict() -> None:
    """A prompt longer than a step is fed over several; only the last chunk samples."""
    one = scheduler("fixed:4", max_step_tokens=16)
    open_session(one, 1, 40, 0)
    for fed in (16, 16):
        assert (PlanItem(1, fed, 0, False),) == one.plan(0.0, 100).items
        assert {} == commit(one, ItemOutcome(1, fed, 0, 0, 0, 0))
    assert (PlanItem(1, 8, 0, True),) == one.plan(0.0, 100).items
    granted = commit(one, ItemOutcome(1, 8, 0, 0, 1, 0), now=5.0)
    assert {1: (Mode.ROUND, 4)} == {session: (grant.mode, grant.length) for session, grant in granted.items()}
    assert Plan(wake_at=6.0) == one.plan(5.0, 100)


def test_an_outcome_of_a_session_that_left_is_ignored() -> None:
    """A session may close while its step runs."""
    one = scheduler()
    open_session(one, 1, 10)
    one.close(1)
    one.close(1)
    assert {} == commit(one, ItemOutcome(1, 1, 0, 0, 1, 0))
    assert 0 == len(one)


# --- the step's budget -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [2, 3, 12, 13, 16, 512])
def test_prefill_keeps_a_quarter_of_a_step(tokens: int) -> None:
    """However many drafts wait, prefill is never left with nothing, and what it does not need is not wasted."""
    budget = StepBudget(tokens, 10**6, 16)
    busy = [
        SessionRecord(n, 10, 9, True, 0.0, 0.0, grant=Grant(Mode.STREAM, 3), drafted=3) for n in range(1, 10 * tokens)
    ]
    Fifo().fill([*busy, SessionRecord(0, 10**6, 0, False, 9.0, 9.0)], budget, 0.0)
    assert -(-tokens // 4) <= sum(item.tokens for item in budget.items if item.session == 0) < tokens
    assert 0 == budget.tokens
    budget = StepBudget(tokens, 10**6, 16)
    Fifo().fill([*busy, SessionRecord(0, 3, 1, False, 9.0, 9.0)], budget, 0.0)
    assert tokens == sum(item.tokens for item in budget.items)


def test_a_draft_is_cut_to_the_pages_there_are() -> None:
    """A session whose draft does not fit into its last page verifies what does; without any room it is left out."""
    record = SessionRecord(1, 13, 12, True, 0.0, 0.0, grant=Grant(Mode.STREAM, 8), drafted=8)
    budget = StepBudget(100, 0, 16)
    assert budget.verify(record)
    assert [PlanItem(1, 1, 3, True)] == budget.items
    full = SessionRecord(1, 17, 16, True, 0.0, 0.0, grant=Grant(Mode.STREAM, 8), drafted=8)
    assert not StepBudget(100, 0, 16).verify(full)
    assert StepBudget(100, 1, 16).verify(full)


@pytest.mark.parametrize(("tokens", "pages"), [(40, 40), (40, 2), (29, 40)])
def test_decoding_all_at_once_is_decoding_each(tokens: int, pages: int) -> None:
    """Where all fit, the same items, counts and shape as one by one; where a token or a page is missing, nobody."""
    records = [SessionRecord(n, n + 1, n, True, 0.0, 0.0) for n in range(30, 60)]  # two of them begin a page
    together, one_by_one = StepBudget(tokens, pages, 16), StepBudget(tokens, pages, 16)
    fits = tokens >= len(records) and pages >= 2
    assert fits is together.decode(records) is all(one_by_one.verify(record) for record in records)
    if fits:
        assert one_by_one.items == together.items
        assert (one_by_one.tokens, one_by_one.free_pages) == (together.tokens, together.free_pages)
        assert (one_by_one.shape, one_by_one.plain) == (together.shape, together.plain)
    else:
        assert ([], tokens, pages) == (together.items, together.tokens, together.free_pages)


@pytest.mark.parametrize("pages", [0, 1])
def test_decoding_all_at_once_needs_pages_for_all(pages: int) -> None:
    """Two of thirty begin a page."""
    budget = StepBudget(40, pages, 16)
    assert not budget.decode([SessionRecord(n, n + 1, n, True, 0.0, 0.0) for n in range(30, 60)])
    assert ([], 40, pages) == (budget.items, budget.tokens, budget.free_pages)


@pytest.mark.parametrize("drafted", [0, 1, 7])
def test_a_step_knows_its_shape_without_drafts(drafted: int) -> None:
    """As if nobody had drafted: prefill, contexts and a token for each stay."""
    with_drafts, without = StepBudget(100, 1000, 16), StepBudget(100, 1000, 16)
    for budget, pending in ((with_drafts, drafted), (without, 0)):
        for known in (20, 33):
            record = SessionRecord(1, known, known - 1, True, 0.0, 0.0, grant=Grant(Mode.STREAM, 8), drafted=pending)
            assert budget.verify(record)
        assert budget.prefill(SessionRecord(2, 50, 10, False, 0.0, 0.0), 20)
    assert without.shape == without.plain == with_drafts.plain
    assert 2 * drafted == with_drafts.shape.tokens - without.shape.tokens


def test_first_come_first_served() -> None:
    """When not all fit, those that wait longest go first; equals go by number."""
    one = scheduler("none", max_step_tokens=2)
    for session, now in ((3, 0.0), (2, 1.0), (1, 1.0)):
        open_session(one, session, 10, now=now)
    assert [3, 1] == [item.session for item in one.plan(2.0, 100).items]
    commit(one, *(ItemOutcome(session, 1, 0, 0, 1, 0) for session in (3, 1)), now=2.0)
    assert [2, 1] == [item.session for item in one.plan(3.0, 100).items]


# --- giving way ------------------------------------------------------------------------------------------------------


def test_the_youngest_gives_way_to_the_oldest() -> None:
    """When nobody who is ready fits, the session that came last loses its pages, though others are younger than some."""
    one = scheduler("none", page_size=4)
    for session in (1, 2, 3):
        open_session(one, session, 5, now=0.0)
    assert Plan(preempt=(3,)) == one.plan(1.0, 0)
    one.preempted(3, 1.0)
    assert [1] == [item.session for item in one.plan(1.0, 1).items]
    assert Plan(preempt=(2,)) == one.plan(1.0, 0)


def test_the_youngest_gives_way_before_most_wait_for_a_page() -> None:
    """Two of four that find no page are enough, one is not: what the youngest computed must serve others."""
    one = scheduler("none", page_size=4)
    for session in (1, 2, 3, 4):
        open_session(one, session, 5, now=0.0)
    assert [1, 2, 3] == [item.session for item in one.plan(1.0, 3).items]
    assert Plan(preempt=(4,)) == one.plan(1.0, 2)
    one.preempted(4, 1.0)
    assert [1, 2, 3] == [item.session for item in one.plan(1.0, 3).items]


def test_who_came_first_never_gives_way() -> None:
    """A younger session that does not fit waits for an older one that waits for its draft, until that one's deadline."""
    one = scheduler("fixed:4", page_size=4, draft_wait_seconds=2.0)
    open_session(one, 1, 5, now=0.0)
    open_session(one, 2, 5, now=0.5)
    one.drafted(2, 4, False, 0.6)
    assert Plan(wake_at=2.0) == one.plan(1.0, 0)
    assert Plan(preempt=(2,)) == one.plan(2.0, 0)
    one.preempted(2, 2.0)
    assert [1] == [item.session for item in one.plan(2.0, 1).items]


def test_sessions_without_pages_have_none_to_give() -> None:
    """Where nobody younger holds anything, there is nothing to preempt and nothing to wake for."""
    one = scheduler("none", page_size=4)
    open_session(one, 1, 5)
    open_session(one, 2, 5, 0)
    assert Plan() == one.plan(0.0, 0)


def test_integrity_is_checked() -> None:
    """check_integrity tells when a count cannot be."""
    one = scheduler()
    open_session(one, 1, 10)
    one.check_integrity()
    next(iter(one)).computed = 10
    with pytest.raises(AssertionError):
        one.check_integrity()
