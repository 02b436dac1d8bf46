"""What baselines do that the scheduler does not."""

from __future__ import annotations

import pytest

from scheduler import ItemOutcome, Outcome, Scheduler, SchedulerConfig
from simulator.baselines import GlobalRounds


@pytest.mark.parametrize(("kind", "patient"), [(GlobalRounds, True), (Scheduler, False)])
def test_a_barrier_waits_as_long_as_any_round_may(kind: type[Scheduler], patient: bool) -> None:
    """A draft that usually takes 30 ms is not there after 900: only the barrier has waited with the other's verdict."""
    scheduler = kind(SchedulerConfig(speculation="fixed:4", draft_wait_seconds=1.0))
    for session in range(2):
        scheduler.open(
            session, known=8, computed=7, can_draft=True, now=0.0, identity="", draft_seconds=0.005, round_trip=0.01
        )
        scheduler.drafted(session, 4, True, 0.03, tokens=4, seconds=0.02, confirmed=8)
    plan = scheduler.plan(0.03, 10**6)
    assert {item.session for item in plan.items} == {0, 1}
    done = tuple(ItemOutcome(item.session, item.feed, item.draft, 4, 5, 0) for item in plan.items)
    scheduler.commit(Outcome(done, 0.01, plan.shape), 0.04)
    scheduler.drafted(0, 4, True, 0.07, tokens=4, seconds=0.02, confirmed=13)
    assert bool(scheduler.plan(0.08, 10**6).items) is not patient
    if patient:
        assert not scheduler.plan(0.94, 10**6).items
        assert {item.session for item in scheduler.plan(1.05, 10**6).items} == {0, 1}
