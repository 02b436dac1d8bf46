"""The scheduler under any sequence of events: its limits, its fairness, its repeatability."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler import ItemOutcome, Outcome, Plan, Request, Scheduler, SchedulerConfig, SessionRecord
from scheduler.batching.slo import STARVED
from scheduler.identities import Share
from scheduler.scheduler import STUCK
from scheduler.step_profile import StepProfile
from scheduler.step_time import StepShape
from specfleet.core.types import LOCAL, Mode, ServiceClass

PAGE = 4
POLICIES = (
    "fair-goodput",
    "goodspeed:8",
    "smartspec",
    "awc",
    "ladder",
    "none",
    "fixed:1",
    "fixed:4",
    "stream:3",
    "random",
)
BATCHING = ("slo", "fifo", "length-aware")
CLASSES = (ServiceClass("tight", 0.1, 0.02), ServiceClass("loose", 2.0, 0.5), ServiceClass("heavy", weight=3.0))
NAMES = ("", *(one.name for one in CLASSES))
EXAMPLES = int(os.environ.get("SPECFLEET_EXAMPLES", "60"))
"""`make properties` asks for 10,000."""


def pages(tokens: int, size: int) -> int:
    """Pages that hold so many tokens."""
    return math.ceil(tokens / size)


@dataclass
class Client:
    """What the verifier knows of a session, and the scheduler must agree with."""

    known: int
    computed: int
    last: int
    drafted: int = 0


class Events(RuleBasedStateMachine):
    """Sessions come, draft, are planned, preempted and leave, in any order, over a pool of any size. A twin gets the same."""

    @initialize(
        policy=st.sampled_from(POLICIES),
        batching=st.sampled_from(BATCHING),
        tokens=st.integers(1, 40),
        total=st.integers(4, 30),
        wait=st.sampled_from([0.5, 5.0]),
    )
    def begin(self, policy: str, batching: str, tokens: int, total: int, wait: float) -> None:
        config = SchedulerConfig(
            speculation=policy,
            batching=batching,
            max_step_tokens=tokens,
            page_size=PAGE,
            draft_wait_seconds=wait,
            classes=CLASSES,
            shares={"b": Share(weight=2.0, sessions=3, tokens_per_minute=600.0)},
            seed=5,
        )
        self.one, self.twin = Scheduler(config), Scheduler(config)
        self.total, self.tokens = total, tokens
        self.clients: dict[int, Client] = {}
        self.now = 0.0
        self.numbers = 0
        self.batching = batching
        self.paused_at = math.inf
        """Since when somebody has been ready and nobody was served."""

    @property
    def free(self) -> int:
        return self.total - sum(pages(client.computed, PAGE) for client in self.clients.values())

    def records(self) -> dict[int, SessionRecord]:
        return {record.session: record for record in self.one}

    @precondition(lambda self: len(self.clients) < 8)
    @rule(data=st.data(), can_draft=st.booleans(), name=st.sampled_from(NAMES), identity=st.sampled_from("abc"))
    def a_session_opens(self, data: st.DataObject, can_draft: bool, name: str, identity: str) -> None:
        room = self.total * PAGE
        known = data.draw(st.integers(1, room - 1))
        last = data.draw(st.integers(known + 1, room))
        self.numbers += 1
        cached = data.draw(st.integers(0, min((known - 1) // PAGE, self.free))) * PAGE
        for one in (self.one, self.twin):
            service = one.service_class(name)
            refused = one.admit(Request(identity, service, known - cached), (), self.now)
            assert refused is None or refused.retry_after >= 1.0
            # Admission is the caller's to heed; whoever is let in nevertheless must do no harm.
            grant = one.open(
                self.numbers,
                known=known,
                computed=cached,
                can_draft=can_draft,
                now=self.now,
                identity=identity,
                service=service,
            )
            assert can_draft or grant == LOCAL
        self.clients[self.numbers] = Client(known, cached, last)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), complete=st.booleans())
    def a_draft_comes(self, data: st.DataObject, complete: bool) -> None:
        session = data.draw(st.sampled_from(sorted(self.clients)))
        client = self.clients[session]
        client.drafted = data.draw(st.integers(0, min(12, client.last - 1 - client.known)))
        spent = data.draw(st.sampled_from([0.0, 0.01, 1e9, math.inf, math.nan, -1.0]))
        chances = data.draw(st.lists(st.floats(0.0, 1.0), max_size=client.drafted).map(tuple))
        for one in (self.one, self.twin):
            one.drafted(
                session, client.drafted, complete, self.now, tokens=client.drafted, seconds=spent, chances=chances
            )

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), accepted=st.integers(-1, 100), tested=st.integers(-1, 100))
    def a_shadow_report_comes(self, data: st.DataObject, accepted: int, tested: int) -> None:
        session = data.draw(st.sampled_from(sorted(self.clients)))
        for one in (self.one, self.twin):
            one.shadowed(session, accepted, tested)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def a_session_leaves(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.clients)))
        del self.clients[session]
        for one in (self.one, self.twin):
            one.close(session)

    @rule(data=st.data())
    def a_step(self, data: st.DataObject) -> None:
        plan = self.one.plan(self.now, self.free)
        assert plan == self.twin.plan(self.now, self.free)
        self.check(plan)
        for session in plan.preempt:
            self.clients[session].computed = 0
            for one in (self.one, self.twin):
                one.preempted(session, self.now)
        outcomes = []
        for item in plan.items:
            client = self.clients[item.session]
            accepted = data.draw(st.integers(0, item.draft)) if item.draft else 0
            committed = min(accepted + 1, client.last - client.known) if item.sample else 0
            client.known += committed
            client.computed = client.known - 1 if committed else client.computed + item.feed
            if committed:
                client.drafted = max(0, client.drafted - committed) if accepted == item.draft else 0
            outcomes.append(
                ItemOutcome(item.session, item.feed, item.draft, min(accepted, committed), committed, client.drafted)
            )
        seconds = data.draw(st.sampled_from([0.0, 0.01, 0.5]))
        self.now += seconds
        outcome = Outcome(tuple(outcomes), seconds)
        grants = self.one.commit(outcome, self.now)
        assert grants == self.twin.commit(outcome, self.now)
        assert {item.session for item in plan.items if item.sample} == set(grants)
        for session in [session for session, client in self.clients.items() if client.known >= client.last]:
            del self.clients[session]
            for one in (self.one, self.twin):
                one.close(session)

    def check(self, plan: Plan) -> None:
        records = self.records()
        assert len({item.session for item in plan.items}) == len(plan.items)
        assert sum(item.tokens for item in plan.items) <= self.tokens
        grown = 0
        for item in plan.items:
            client, record = self.clients[item.session], records[item.session]
            behind = client.known - client.computed
            assert 1 <= item.feed <= behind and item.sample == (item.feed == behind)
            assert 0 <= item.draft <= min(client.drafted, record.grant.length)
            assert not item.draft or (record.grant.mode is not Mode.LOCAL and behind == 1)
            assert client.computed + item.tokens <= client.last
            grown += pages(client.computed + item.tokens, PAGE) - pages(client.computed, PAGE)
        assert grown <= self.free
        ready = [record for record in records.values() if self.ready(record)]
        fits = [record for record in ready if self.free > 0 or record.computed % PAGE]
        if self.pauses(plan, ready, fits):
            return
        if plan.preempt and fits:
            stuck = [one for one in ready if one.known - one.computed == 1 and one.computed % PAGE == 0]
            assert len(stuck) > max(1, STUCK * len(ready)), (
                "somebody gives way although hardly anybody waits for a page"
            )
        else:
            assert bool(plan.items) == bool(fits), "a step is planned if, and only if, somebody who is ready fits"
        assert not (plan.items and plan.preempt)
        if plan.items:
            return
        age = attrgetter("opened_at", "session")
        holders = [record for record in records.values() if record.computed]
        for session in plan.preempt:
            victim = records[session]
            assert victim is max(holders, key=age), "the youngest of those with pages"
            assert age(victim) > min(map(age, ready)), "never for somebody who came later"
            assert victim is not min(records.values(), key=age), "never the oldest"
        if not plan.preempt:
            waiting = [record.draft_deadline for record in records.values() if not self.ready(record)]
            assert plan.wake_at == min(waiting, default=None)
            assert plan.wake_at is None or plan.wake_at > self.now, "waking at once would be a busy loop"
            assert waiting or not records, "somebody is open, and nothing would ever happen"

    def pauses(self, plan: Plan, ready: list[SessionRecord], fits: list[SessionRecord]) -> bool:
        """Somebody who fits is ready, and nobody is served: only under `slo`, only while a draft may come, and for no longer
        than a step's fixed part in all."""
        if plan.items or plan.preempt or not ready or len(ready) == len(self.clients) or self.batching != "slo":
            self.paused_at = math.inf
            return False
        limit = min(self.paused_at, self.now) + 1.001 * self.one.step_time.coefficients[0]
        within = plan.wake_at is not None and self.now < plan.wake_at <= limit
        if not within and not fits:
            return False  # nobody fits: they wait for whoever holds the pages
        assert within, "a pause is short"
        self.paused_at = min(self.paused_at, self.now)
        return True

    def ready(self, record: SessionRecord) -> bool:
        if record.grant.mode is not Mode.ROUND or record.behind > 1:
            return True
        return record.drafted >= record.grant.length or record.draft_complete or record.draft_deadline <= self.now

    @invariant()
    def counts_agree(self) -> None:
        self.one.check_integrity()
        assert {session: (client.known, client.computed) for session, client in self.clients.items()} == {
            record.session: (record.known, record.computed) for record in self.one
        }
        assert self.free >= 0


TestEvents = Events.TestCase
TestEvents.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("batching", BATCHING)
@pytest.mark.parametrize("policy", ["none", "stream:3", "stream:8"])
@settings(max_examples=25, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 60), min_size=1, max_size=10),
    tokens=st.integers(2, 40),
    drafted=st.integers(0, 8),
    names=st.lists(st.sampled_from(NAMES), min_size=10, max_size=10),
    identities=st.lists(st.sampled_from("abc"), min_size=10, max_size=10),
)
def test_nobody_starves(
    policy: str,
    batching: str,
    prompts: list[int],
    tokens: int,
    drafted: int,
    names: list[str],
    identities: list[str],
) -> None:
    """With pages enough and everybody ready always, each session is served once in as many plans as there are sessions; under
    `slo`, where others may be more urgent, once the steps have passed that one may wait."""
    patience = len(prompts) + (STARVED + 1 if batching == "slo" else 0)
    step = 0.01
    one = Scheduler(
        SchedulerConfig(speculation=policy, batching=batching, max_step_tokens=tokens, page_size=PAGE, classes=CLASSES)
    )
    last: dict[int, int] = {}
    known = dict(enumerate(prompts))
    computed = dict.fromkeys(known, 0)
    for session, length in known.items():
        service = one.service_class(names[session])
        one.open(
            session, known=length, computed=0, can_draft=True, now=0.0, identity=identities[session], service=service
        )
        last[session] = 0
    for number in range(1, 120):
        plan = one.plan(number * step, 10**6)
        outcomes = []
        for item in plan.items:
            assert number - last[item.session] <= patience
            last[item.session] = number
            committed = int(item.sample)
            known[item.session] += committed
            computed[item.session] += item.feed
            outcomes.append(ItemOutcome(item.session, item.feed, item.draft, 0, committed, drafted))
        one.commit(Outcome(tuple(outcomes), step), (number + 1) * step)
    assert all(120 - at <= patience for at in last.values())


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data(), count=st.integers(1, 12), now=st.floats(0.0, 1.0))
def test_no_addition_breaks_a_deadline_that_could_be_met(data: st.DataObject, count: int, now: float) -> None:
    """Under `slo`, with pages and tokens enough: whoever would have its token in time beside all others that decode and have
    a due time, drafts included, is not made late by prefill or anybody else, unless somebody had waited too long already."""
    profile = StepProfile(0.01, data.draw(st.floats(1e-5, 5e-3)), 1e-7, 1e-8)
    one = Scheduler(SchedulerConfig(speculation="stream:8", classes=CLASSES, max_step_tokens=4096, profile=profile))
    for session in range(count):
        known = data.draw(st.integers(1, 400))
        computed = data.draw(st.sampled_from([0, known - 1]))
        service = one.service_class(data.draw(st.sampled_from(NAMES)))
        one.open(session, known=known, computed=computed, can_draft=True, now=0.0, service=service)
        one.drafted(session, data.draw(st.integers(0, 8)), False, 0.0)
    records = {record.session: record for record in one}
    for record in records.values():
        if record.computed:
            record.first_at, record.emitted, record.ready_at = 0.0, data.draw(st.integers(1, 50)), now
            record.schedule()
            one._queue.place(record, now)
    plan = one.plan(now, 10**6)
    margin = 1.0 + one.step_time.error

    def end(items: Iterable[tuple[int, int]]) -> float:
        return now + margin * one.step_time.predict(StepShape.of(items))

    whole = end((item.tokens, records[item.session].computed) for item in plan.items)
    if now - min(record.ready_at for record in records.values()) > STARVED * 0.01:
        return
    promised = {
        n: (1 + one.offered, one.computed) for n, one in records.items() if one.behind == 1 and one.due < math.inf
    }
    for session, record in records.items():
        if end(({session: (record.behind, record.computed)} | promised).values()) <= record.due:
            assert whole <= record.due + 1e-6


@pytest.mark.parametrize("policy", ["none", "fixed:4", "stream:3"])
@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=2, max_size=6),
    tokens=st.integers(4, 40),
    spare=st.integers(0, 3),
)
def test_in_a_pool_for_one_everybody_finishes(
    policy: str, sizes: list[tuple[int, int]], tokens: int, spare: int
) -> None:
    """However small the pool, as long as each fits alone, all sessions come to their end, the oldest first of all."""
    total = pages(max(prompt + output for prompt, output in sizes), PAGE) + spare
    one = Scheduler(SchedulerConfig(speculation=policy, max_step_tokens=tokens, page_size=PAGE))
    clients = {n: Client(prompt, 0, prompt + output) for n, (prompt, output) in enumerate(sizes)}
    for session, client in clients.items():
        one.open(session, known=client.known, computed=0, can_draft=True, now=0.0)
    finished: list[int] = []
    for step in range(3000):
        if not clients:
            break
        free = total - sum(pages(client.computed, PAGE) for client in clients.values())
        now = float(step)
        for session, client in clients.items():
            one.drafted(session, min(5, client.last - 1 - client.known), True, now)
        plan = one.plan(now, free)
        assert plan.items or plan.preempt
        for session in plan.preempt:
            assert session != min(clients)
            one.preempted(session, now)
            clients[session].computed = 0
        outcomes = []
        for item in plan.items:
            client = clients[item.session]
            committed = int(item.sample)
            client.known += committed
            client.computed = client.computed + item.feed
            outcomes.append(ItemOutcome(item.session, item.feed, item.draft, 0, committed, 0))
        one.commit(Outcome(tuple(outcomes), 0.01), now)
        for session in [session for session, client in clients.items() if client.known == client.last]:
            finished.append(session)
            one.close(session)
            del clients[session]
        one.check_integrity()
    assert list(range(len(sizes))) == sorted(finished)
