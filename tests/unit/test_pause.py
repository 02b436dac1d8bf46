"""When a step waits for a draft that is almost there."""

from __future__ import annotations

import pytest

from scheduler import ItemOutcome, Outcome, Scheduler, SchedulerConfig
from scheduler.step_profile import StepProfile
from specfleet.core.types import ServiceClass

FIXED = 0.02
EACH = 0.001
CLASSES = (ServiceClass("tight", 1.0, 0.03),)


def scheduler(sessions: int, batching: str = "slo", service: str = "", trip: float = 0.001) -> Scheduler:
    """Everybody drafts four tokens a round, which takes 5 ms with the way, and got a verdict at 10 s, but the last, who
    got it 4 ms before."""
    one = Scheduler(
        SchedulerConfig(
            speculation="fixed:4",
            batching=batching,
            profile=StepProfile(FIXED, 1e-4),
            draft_wait_seconds=9.0,
            classes=CLASSES,
        )
    )
    for session in range(sessions):
        one.open(
            session,
            known=10,
            computed=9,
            can_draft=True,
            now=9.0,
            draft_seconds=EACH,
            round_trip=trip,
            service=one.service_class(service),
        )
    for session in range(sessions):
        at = 9.996 if session == sessions - 1 else 10.0
        one.commit(Outcome((ItemOutcome(session, 1, 0, 0, 1, 0),), FIXED), at)
    return one


def arrives(one: Scheduler, *sessions: int, at: float) -> None:
    for session in sessions:
        one.drafted(session, 4, True, at)


def test_two_that_would_miss_each_other_share_a_step() -> None:
    """The last one's draft is there, the other's comes in 4 ms: a step of 20 ms that began now would make it wait."""
    one = scheduler(2)
    arrives(one, 1, at=10.001)
    plan = one.plan(10.001, 100)
    assert not plan.items and plan.wake_at is not None
    assert 10.005 <= plan.wake_at <= 10.001 + FIXED
    arrives(one, 0, at=10.005)
    assert {0, 1} == {item.session for item in one.plan(10.005, 100).items}


def test_a_draft_that_does_not_come_is_waited_for_once() -> None:
    """It is late by a quarter of what it takes: nobody waits any longer."""
    one = scheduler(2)
    arrives(one, 1, at=10.001)
    wake_at = one.plan(10.001, 100).wake_at
    assert wake_at is not None
    assert [1] == [item.session for item in one.plan(wake_at, 100).items]


def test_many_do_not_wait_for_one() -> None:
    """Eight that are ready lose more in 4 ms than one saves."""
    one = scheduler(9)
    arrives(one, *range(1, 9), at=10.001)
    assert 8 == len(one.plan(10.001, 100).items)


def test_a_draft_from_afar_is_not_waited_for() -> None:
    """What comes after more than the fixed part of a step would not save any of it."""
    one = scheduler(2, trip=0.03)
    arrives(one, 1, at=10.001)
    assert [1] == [item.session for item in one.plan(10.001, 100).items]


def test_nobody_who_is_due_is_held_up() -> None:
    """A promise counts more than a full step."""
    one = scheduler(2, service="tight")
    arrives(one, 1, at=10.001)
    assert [1] == [item.session for item in one.plan(10.001, 100).items]


@pytest.mark.parametrize("batching", ["fifo", "length-aware"])
def test_other_policies_never_wait(batching: str) -> None:
    """They are what others do."""
    one = scheduler(2, batching)
    arrives(one, 1, at=10.001)
    assert [1] == [item.session for item in one.plan(10.001, 100).items]
