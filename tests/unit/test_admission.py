"""Admission and quotas: who is refused, with which words and when to come back; and reports that nobody believes."""

from __future__ import annotations

import asyncio
import math

import pytest

from scheduler.admission import Request, infeasible, over_quota
from scheduler.identities import Identities, Share, jain
from scheduler.step_profile import StepProfile
from scheduler.step_time import StepTimeModel
from scheduler.types import SessionRecord
from specfleet.core.errors import InvalidRequest, Overloaded, QuotaExceeded
from specfleet.core.protocol import Draft, Finished, Open, Opened, Shadow
from specfleet.core.types import BEST_EFFORT, SamplingParams, ServiceClass
from support.engine import reference
from support.fleet import GREEDY, TABLE, fleet
from verifier.observer import Silent

STEPS = StepTimeModel(StepProfile(0.01, 0.002))
CHAT = ServiceClass("chat", tpot_seconds=0.05)


def running(count: int, service: ServiceClass = CHAT, tokens: float = 1.0) -> list[SessionRecord]:
    """Sessions that decode, each committing `tokens` tokens a verdict."""
    records = [SessionRecord(n, 100, 99, False, 0.0, 0.0, service=service) for n in range(count)]
    for record in records:
        for _ in range(200):
            record.tokens_per_verdict.observe(tokens)
    return records


def test_paces_add_up_to_a_load() -> None:
    """fixed / pace + n * token / pace <= 0.95 with a tenth of margin: 0.22 + 0.044 n fits 16 sessions, not 17."""
    request = Request("a", CHAT, 1)
    assert infeasible(request, (), running(15), STEPS) is None
    refusal = infeasible(request, (), running(16), STEPS)
    assert refusal is not None and refusal.retry_after >= 1.0 and not refusal.quota
    assert "'chat' cannot be kept" in refusal.reason


def test_who_waits_to_be_opened_counts() -> None:
    """Requests of one moment do not all slip through."""
    request = Request("a", CHAT, 1)
    assert infeasible(request, [request] * 15, (), STEPS) is None
    assert infeasible(request, [request] * 16, (), STEPS) is not None


def test_speculation_makes_room() -> None:
    """Sessions that get two tokens a verdict need half of the steps."""
    assert infeasible(Request("a", CHAT, 1), (), running(16, tokens=2.0), STEPS) is None


def test_best_effort_is_never_refused_for_others() -> None:
    """Who is promised nothing takes what is left, and takes nothing from promises."""
    assert infeasible(Request("a", BEST_EFFORT, 10**6), (), running(100), STEPS) is None
    assert infeasible(Request("a", CHAT, 1), (), running(1000, BEST_EFFORT), STEPS) is None


def test_a_queue_longer_than_the_first_token_may_take() -> None:
    """A thousand tokens before it at 2 ms: two seconds of prefill are no second."""
    quick = ServiceClass("quick", ttft_seconds=1.0)
    queue = [SessionRecord(1, 1000, 0, False, 0.0, 0.0)]
    refusal = infeasible(Request("a", quick, 10), (), queue, STEPS)
    assert refusal is not None and "first token in 1 s" in refusal.reason
    assert infeasible(Request("a", quick, 10), (), (), STEPS) is None


def test_quotas_belong_to_identities() -> None:
    """Sessions open or waiting, and tokens by the minute, refilled by time."""
    identities = Identities({"bob": Share(sessions=2, tokens_per_minute=60.0)})
    bob = identities.opened("bob", 0.0)
    waiting = Request("bob", BEST_EFFORT, 1)
    assert over_quota(bob, (), 0.0) is None
    refusal = over_quota(bob, [waiting], 0.0)
    assert refusal is not None and refusal.quota and "2 sessions of 'bob' are open, at most 2" in refusal.reason
    assert over_quota(identities.get("eve", 0.0), [waiting] * 9, 0.0) is None
    bob.committed(90, 0.0)
    refusal = over_quota(bob, (), 0.0)
    assert refusal is not None and refusal.quota and 30.0 == pytest.approx(refusal.retry_after)
    assert over_quota(bob, (), 30.1) is None


def test_jain() -> None:
    """1 for equals, 1/n where one has all, 1 for nobody."""
    assert (1.0, 0.25, 1.0) == (jain([3.0, 3.0]), jain([5.0, 0.0, 0.0, 0.0]), jain([]))


@pytest.mark.asyncio
async def test_refusals_reach_the_drafter_as_typed_errors() -> None:
    """An unknown class is a bad request, a class that cannot be kept is an overload, a quota is one's own; others go on."""
    shares = {"memory": Share(sessions=1)}
    steps = StepProfile(1000.0, 1.0)  # steps are faster, and that is noticed, but not so soon
    async with fleet("none", delay=0.005, classes=(CHAT,), shares=shares, profile=steps) as one:
        first = asyncio.create_task(one.generate([1, 2, 3]))
        await asyncio.sleep(0.02)
        with pytest.raises(InvalidRequest, match=r"service_class: is 'gold', must be one of chat; or leave it empty"):
            await one.generate([1, 2], service_class="gold")
        with pytest.raises(QuotaExceeded, match="1 sessions of 'memory' are open") as refused:
            await one.generate([1, 2])
        assert refused.value.retry_after is not None
        assert reference([1, 2, 3], 40) == await asyncio.wait_for(first, 10)
        with pytest.raises(Overloaded, match="'chat' cannot be kept"):
            await one.generate([1, 2], service_class="chat")
        await one.quiet()


class Counting(Silent):
    def __init__(self) -> None:
        self.reports: list[str] = []

    def ignored(self, report: str) -> None:
        self.reports.append(report)


@pytest.mark.asyncio
async def test_absurd_reports_are_counted_and_ignored() -> None:
    """NaN from a drafter, at the opening, with a draft or in a shadow report: the text goes on, and somebody counts."""
    async with fleet("fixed:2", draft_wait_seconds=0.05) as one:
        observer = Counting()
        one.verifier._observer = observer
        stream = await one.connection.verify()
        opening = Open(
            prompt=(1, 2),
            sampling=SamplingParams(temperature=0.0, max_tokens=12),
            vocabulary_digest=TABLE.digest(),
            draft_seconds_per_token=math.nan,
            round_trip_seconds=math.nan,
        )
        await stream.send(opening)
        assert isinstance(await stream.receive(), Opened)
        await stream.send(Draft(position=2, tokens=(1,), confirmed=2, last=True, draft_seconds=math.nan))
        await stream.send(Shadow(position=2, tested=16, accepted=3, draft_seconds_per_token=math.nan))
        while not isinstance(await asyncio.wait_for(stream.receive(), 10), Finished):
            pass
        assert ["draft_seconds", "draft_seconds", "draft_seconds", "round_trip"] == sorted(observer.reports)
        assert reference([1, 2, 3], 40) == await asyncio.wait_for(one.generate([1, 2, 3], GREEDY), 10)
        await one.quiet()
