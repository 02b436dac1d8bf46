"""What earns most is found by trying, in a world whose earnings are known."""

from __future__ import annotations

import pytest

from scheduler.speculation.governor import Governor, Way

STEP = 0.02


def lived(
    governor: Governor, rates: dict[Way, float], seconds: float, *, visits: float = 0.0, now: float = 0.0
) -> tuple[float, dict[Way, float]]:
    """Steps of one session for so long, which earn at the rate of the way they go; in visits of so many seconds with as
    many between, if any. The time then, and the seconds spent in each way."""
    spent = dict.fromkeys(Way, 0.0)
    end = now + seconds
    while now < end:
        until = now + visits if visits else end
        while now < until:
            now += STEP
            spent[governor.way] += STEP
            governor.verdict(STEP, STEP, STEP)
            governor.stepped(rates[governor.way] * STEP, 1, True, now, rounds=True)
        if visits:
            governor.idle()
            now += visits
    return now, spent


@pytest.mark.parametrize("best", list(Way))
@pytest.mark.parametrize("visits", [0.0, 0.3], ids=["staying", "visiting"])
def test_what_earns_most_is_found(best: Way, visits: float) -> None:
    """Also by somebody whose visits are shorter than a window."""
    rates = {way: 1.25 if way is best else 1.0 for way in Way}
    governor = Governor()
    now, _ = lived(governor, rates, 60.0, visits=visits)
    _, spent = lived(governor, rates, 200.0, visits=visits, now=now)

    assert spent[best] > 0.95 * sum(spent.values())


def test_a_change_of_what_is_best_is_noticed() -> None:
    """Rounds are best at first; then the drafters move away, and streams are."""
    governor = Governor()
    now, _ = lived(governor, {Way.ALONE: 0.9, Way.ROUNDS: 1.2, Way.FREE: 1.0}, 100.0)
    assert governor.way is Way.ROUNDS
    now, _ = lived(governor, {Way.ALONE: 0.9, Way.ROUNDS: 0.5, Way.FREE: 1.0}, 300.0, now=now)
    _, spent = lived(governor, {Way.ALONE: 0.9, Way.ROUNDS: 0.5, Way.FREE: 1.0}, 100.0, now=now)

    assert spent[Way.FREE] > 0.95 * sum(spent.values())


def test_rounds_are_not_tried_where_they_promise_little() -> None:
    """Drafters far away would lose most of their time in them."""
    governor, now = Governor(), 0.0
    for _ in range(5000):
        now += STEP
        assert governor.way is not Way.ROUNDS
        governor.verdict(STEP, STEP, STEP)
        governor.stepped(STEP, 1, True, now, rounds=False)


def test_a_large_crowd_that_is_far_away_drafts_before_it_was_tried() -> None:
    """Eight begin alone, since drafters beside the verifier may cost it more than they bring; these are not beside it. What
    they wish is waited for, and then they need not be seen to earn more than without."""
    drafted = {}
    for far in (False, True):
        governor, now, drafted[far] = Governor(), 0.0, 0
        for _ in range(150):
            now += STEP
            governor.verdict(STEP, STEP, STEP)
            governor.stepped(STEP, 8, True, now, far=far)
            drafted[far] += governor.drafting

    assert drafted[False] < 50
    assert drafted[True] > 80


def test_a_large_crowd_that_is_trusted_and_loses_much_stops_at_once() -> None:
    """They seem far away and are not: their drafters take the verifier's processors. Eight sessions knew what they earned
    alone, and do not ask again soon; half the loss could pass while streams get ahead."""
    drafted = {}
    for share in (0.6, 0.85):
        governor, now, drafted[share] = Governor(), 0.0, 0
        for _ in range(250):
            now += STEP
            governor.verdict(STEP, STEP, STEP)
            governor.stepped((share if governor.drafting else 1.0) * STEP, 8, True, now, far=True)
            drafted[share] += governor.drafting

    assert 5 < drafted[0.6] < 20
    assert drafted[0.85] > 20


@pytest.mark.parametrize(("gain", "asked"), [(1.07, 2), (1.15, 1)], ids=["within the scatter", "beyond it"])
def test_drafting_has_to_earn_more_than_windows_scatter_or_do_so_twice(gain: float, asked: int) -> None:
    """Windows of eight who decode alone differ by 7 %. A trial is over in half a second; what it found best stays longer."""
    governor, now, trials, lasted = Governor(), 0.0, 0, 0
    for step in range(2000):
        now += STEP
        usual = (1.0, 0.93, 1.07)[step // 10 % 3]
        governor.verdict(STEP, STEP, STEP)
        governor.stepped((gain if governor.drafting else usual) * STEP, 8, True, now)
        trials += governor.drafting and not lasted
        lasted = lasted + 1 if governor.drafting else 0
        if lasted * STEP > 0.5:
            break

    assert trials - 1 == asked  # without the stretch that found itself best


def test_a_trial_of_many_that_loses_half_ends_soon() -> None:
    """Drafts make each verdict take a second instead of a fifth: three of them to settle, and one more."""
    governor, now, trial = Governor(), 0.0, 0.0
    while now < 60.0 and not (trial and not governor.drafting):
        interval = 1.0 if governor.drafting else 0.2
        now += interval / 4
        for _ in range(16):
            governor.verdict(interval, interval, 0.0)
        governor.stepped((0.5 if governor.drafting else 1.0) * interval / 4, 64, True, now)
        trial += interval / 4 * governor.drafting

    assert 3.0 < trial < 4.6


def test_many_who_come_at_once_do_not_begin_to_draft() -> None:
    """They are here before a step has ended; a few may, and as many as are known to gain by it."""
    governor = Governor()
    assert [True] * 5 + [False] * 11 == [governor.drafts(sessions) for sessions in range(1, 17)]
    now = 0.0
    while governor.way is Way.ALONE or now < 30.0:
        now += STEP
        governor.verdict(STEP, STEP, STEP)
        governor.stepped(STEP * (1.5 if governor.drafting else 1.0), 16, True, now)
    governor.idle()
    assert all(governor.drafts(sessions) for sessions in range(1, 17))
    assert not governor.drafts(64)
    governor.stepped(0.0, 16, False, now + 1.0)
    while governor.drafting:
        now += STEP
        governor.verdict(STEP, STEP, STEP)
        governor.stepped(STEP * (1.5 if governor.drafting else 1.0), 16, True, now)
    assert not governor.drafts(17), "in a trial of decoding alone"


def test_a_crowd_that_gathers_is_one_crowd() -> None:
    """Eight, then twelve within a moment, are a crowd of twelve: what such a one found out before holds."""
    governor, now, drafted = Governor(), 0.0, 0
    for sessions, steps in ((12, 200), (0, 0), (8, 3), (12, 200)):
        if not sessions:
            governor.idle()
            now += 1.0
            drafted = 0
        for _ in range(steps):
            now += STEP
            governor.verdict(STEP, STEP, STEP)
            governor.stepped((0.6 if governor.drafting else 1.0) * STEP, sessions, True, now)
            drafted += governor.drafting

    assert drafted == 0


def test_a_crowd_that_grows_does_not_ask_anew_at_each_size() -> None:
    """Drafting loses a sixth whatever the size: eight sessions find out, and thirty-two believe them for a while."""
    governor, now, drafted = Governor(), 0.0, dict.fromkeys((8, 16, 32), 0.0)
    for sessions in drafted:
        end = now + 8.0
        while now < end:
            now += STEP
            drafted[sessions] += STEP * governor.drafting
            governor.verdict(STEP, STEP, STEP)
            governor.stepped((0.85 if governor.drafting else 1.0) * STEP, sessions, True, now)

    assert drafted[8] > 0.2
    assert drafted[32] == 0.0


def while_it_goes(governor: Governor, way: Way, rate: float, now: float, most: float = 5.0) -> float:
    """Steps that earn `rate` while the governor lets everybody go that way, `most` seconds. The time then."""
    end = now + most
    while governor.way is way and now < end:
        now += STEP
        governor.verdict(STEP, STEP, STEP)
        governor.stepped(rate * STEP, 1, True, now)
    return now


@pytest.mark.parametrize(
    ("tried", "after", "found"), [(6.7, 3.4, Way.FREE), (9.6, 8.0, Way.ALONE)], ids=["drifting", "steady"]
)
def test_a_trial_shows_no_more_than_what_drifts_beside_it(tried: float, after: float, found: Way) -> None:
    """6.7 is more than the mean of 8 before and 3.4 after it, but so is one of these: what is usual goes on. 9.6 between 8 and
    8 is better."""
    governor = Governor()
    now = while_it_goes(governor, Way.FREE, 8.0, 0.0)
    now = while_it_goes(governor, Way.ALONE, tried, now)
    while_it_goes(governor, Way.FREE, after, now, most=2.5)

    assert governor.way is found


def test_what_takes_long_to_settle_is_judged_once_it_has() -> None:
    """Slow drafters believed to be fast: eight sessions begin alone, then try it; for a second it earns less while the first
    rounds are on their way, which shows only once it is tried."""
    governor, now, opened = Governor(), 0.0, 0.0
    for _ in range(2000):
        if not governor.drafting:
            opened = now
        now += STEP
        settled = now - opened > 1.0
        governor.verdict(STEP, STEP, 1.0 if governor.drafting else 0.05)
        governor.stepped((1.0 if not governor.drafting else 1.2 if settled else 0.6) * STEP, 8, True, now)

    assert governor.drafting


def test_decoding_alone_is_tried_for_a_moment() -> None:
    """However long drafters need to get ahead: that is waited for before and after, but not while nobody drafts."""
    governor, now, alone = Governor(), 0.0, []
    for _ in range(3000):
        before, now = governor.drafting, now + STEP
        governor.verdict(STEP, STEP, 1.5)
        governor.stepped((1.1 if governor.drafting else 1.0) * STEP, 2, True, now)
        if not governor.drafting:
            if before:
                alone.append(0.0)
            alone[-1] += STEP

    assert alone
    assert max(alone) < 1.0


def test_what_is_clear_is_tried_once_more_before_it_is_believed() -> None:
    """A first trial may come while everything is new: of 0.85 where 1.2 is true one is not sure for long."""
    governor = Governor()
    now = while_it_goes(governor, Way.FREE, 1.0, 0.0)
    now = while_it_goes(governor, Way.ALONE, 0.85, now)
    now = while_it_goes(governor, Way.FREE, 1.0, now, most=30.0)
    assert governor.way is Way.ALONE
    now = while_it_goes(governor, Way.ALONE, 1.2, now)
    while_it_goes(governor, Way.FREE, 1.0, now, most=2.5)

    assert governor.way is Way.ALONE


def test_a_lucky_trial_is_questioned_soon() -> None:
    """However much more it earned."""
    governor = Governor()
    now = while_it_goes(governor, Way.FREE, 1.0, 0.0)
    assert governor.way is Way.ALONE
    now = while_it_goes(governor, Way.ALONE, 1.8, now, most=0.8)
    _, spent = lived(governor, {Way.ALONE: 0.8, Way.ROUNDS: 0.8, Way.FREE: 1.0}, 30.0, now=now)

    assert spent[Way.FREE] > 20.0
