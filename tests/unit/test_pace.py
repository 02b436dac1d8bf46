"""What drafters and verifiers believe of each other's speed."""

from __future__ import annotations

import pytest

from drafter.pace import FORGIVEN_SECONDS, Pace
from scheduler import ItemOutcome, Outcome, Scheduler, SchedulerConfig
from specfleet.core.types import Mode


def test_one_slow_moment_is_not_believed() -> None:
    pace = Pace()
    assert not pace.told_draft_seconds(0.0)
    for seconds in (0.001, 0.001, 0.9, 0.001, 0.0, float("nan")):
        pace.draft_seconds.observe(seconds, 1.0)

    assert pace.told_draft_seconds(1.0) == 0.001


def test_a_speed_that_nobody_has_measured_for_long_is_forgiven() -> None:
    """Whoever was slow once is not asked to draft, and nothing else would show that it is fast again."""
    pace = Pace()
    pace.draft_seconds.observe(0.08, 10.0)

    assert pace.told_draft_seconds(10.0) == 0.08
    assert pace.told_draft_seconds(10.0 + 3 * FORGIVEN_SECONDS) == pytest.approx(0.01)


def test_a_new_branch_overtakes_a_verifier_after_so_many_guesses() -> None:
    """While n guesses are made and sent the verifier writes on: n = (round trip + step) / (step - guess). A drafter that is
    hardly faster needs many, and whoever has measured nothing knows of none."""
    pace = Pace()
    assert pace.lag == 0.0
    pace.round_trip.observe(0.06, 1.0)
    pace.step_seconds.observe(0.01)
    pace.draft_seconds.observe(0.003, 1.0)
    assert pace.lag == pytest.approx(10.0)
    pace.draft_seconds.observe(0.05, 1.0)
    pace.draft_seconds.observe(0.05, 1.0)
    assert pace.lag == pytest.approx(0.07 / 0.0005)


def session(policy: str, mode: Mode) -> Scheduler:
    one = Scheduler(SchedulerConfig(speculation=policy))
    grant = one.open(1, known=10, computed=9, can_draft=True, now=5.0)
    assert grant.mode is mode
    return one


def record(one: Scheduler) -> tuple[float, float]:
    """Drafting seconds per token, and round trip."""
    (found,) = one
    return found.draft_seconds.value, found.round_trip.value


def test_the_first_draft_says_nothing_of_drafting_speed() -> None:
    """It took the time of the whole prompt."""
    one = session("fixed:4", Mode.ROUND)
    one.drafted(1, 4, True, 5.9, tokens=4, seconds=0.8, confirmed=10)
    assert record(one) == pytest.approx((0.0, 0.1))

    one.commit(Outcome((ItemOutcome(1, 1, 4, 4, 5, 0),), 0.1), 6.0)
    one.drafted(1, 4, True, 6.05, tokens=4, seconds=0.004, confirmed=15)
    assert record(one) == pytest.approx((0.001, 0.1 * 0.8 + 0.046 * 0.2))


@pytest.mark.parametrize(("policy", "mode"), [("stream", Mode.STREAM), ("fixed:4", Mode.ROUND)])
def test_round_trips_are_learnt_from_whatever_comes(policy: str, mode: Mode) -> None:
    """A draft that knows a verdict has come after it: 30 ms later here, although two newer verdicts were told meanwhile."""
    one = session(policy, mode)
    for step in range(3):
        one.commit(Outcome((ItemOutcome(1, 1, 0, 0, 1, 0),), 0.01), 6.0 + 0.01 * step)
    one.drafted(1, 1, False, 6.03, tokens=1, seconds=0.001, confirmed=10)  # of the opening, a second ago
    assert record(one)[1] == pytest.approx(1.03, rel=0.01)
    for _ in range(40):
        one.commit(Outcome((ItemOutcome(1, 1, 0, 0, 1, 0),), 0.01), 7.0)
        (found,) = one
        one.drafted(1, 1, False, 7.03, tokens=1, seconds=0.001, confirmed=found.known)
    assert record(one)[1] == pytest.approx(0.03, rel=0.05)
