"""Estimators: unbiased under censoring, quick to forget, hard to fool."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scheduler.estimators import HIGHEST, LOWEST, PRIOR, Acceptance, AcceptancePool, Goodput, Smoothed, expected_tokens


def rounds(acceptance: Acceptance, truth: float, length: int, count: int, rng: np.random.Generator) -> None:
    """`count` rounds of `length` drafted tokens, each right with chance `truth` given those before it."""
    for _ in range(count):
        wrong = np.flatnonzero(rng.random(length) >= truth)
        acceptance.verified(length, int(wrong[0]) if len(wrong) else length)


@pytest.mark.parametrize("length", [1, 4, 16])
@pytest.mark.parametrize("truth", [0.2, 0.6, 0.9])
def test_acceptance_is_unbiased_whatever_the_length(truth: float, length: int) -> None:
    """Averaged over many sessions the estimate meets the truth, though long drafts are censored at their first refusal."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(60):
        acceptance = Acceptance(AcceptancePool())
        rounds(acceptance, truth, length, 400, rng)
        found.append(acceptance.rate)
    assert truth == pytest.approx(np.mean(found), abs=0.035)


def test_before_anything_it_is_the_prior_then_the_pools() -> None:
    """A new session believes the prior, or what the others have shown."""
    pool = AcceptancePool()
    assert PRIOR == pytest.approx(Acceptance(pool).rate)
    rounds(Acceptance(pool), 0.2, 4, 500, np.random.default_rng(1))
    assert 0.2 == pytest.approx(Acceptance(pool).rate, abs=0.05)


def test_rounds_without_drafts_and_impossible_reports_teach_nothing() -> None:
    """Zero-length drafts, and reports of more accepted than tested, change nothing."""
    acceptance = Acceptance(AcceptancePool())
    acceptance.verified(0, 0)
    acceptance.reported(5, 3)
    acceptance.reported(-1, 3)
    assert PRIOR == pytest.approx(acceptance.rate)


def test_what_a_drafter_says_of_itself_moves_nobody_else() -> None:
    """A session's own estimate follows its shadow reports; what others start from, and are drawn towards, does not."""
    pool = AcceptancePool()
    boasting, other = Acceptance(pool), Acceptance(pool)
    rounds(other, 0.5, 4, 100, np.random.default_rng(1))
    before, of_all = other.rate, pool.rate
    for _ in range(1000):
        boasting.reported(16, 16)
    assert boasting.rate > 0.9
    assert (before, of_all, of_all) == (other.rate, pool.rate, Acceptance(pool).rate)
    for _ in range(1000):
        boasting.reported(0, 16)
    assert boasting.rate < 0.1
    assert (before, of_all) == (other.rate, pool.rate)


@pytest.mark.parametrize(("truth", "said"), [(0.3, 1.0), (0.8, 0.4), (0.6, 0.6)])
def test_what_a_drafter_says_is_believed_as_far_as_it_came_true(truth: float, said: float) -> None:
    """Chances that are told too high, or too low, mean what the verdicts say that they mean. Whoever says nothing, or says it
    of the front only, is believed."""
    rng = np.random.default_rng(4)
    teller, silent = Acceptance(AcceptancePool()), Acceptance(AcceptancePool())
    for _ in range(400):
        right = rng.random(6) < truth
        accepted = int(np.argmin(right)) if not right.all() else 6
        teller.verified(6, accepted, (said,) * 6)
        silent.verified(6, accepted, (1.0,) * accepted if accepted % 2 else ())
    assert truth == pytest.approx(said * teller.trust, abs=0.12)
    assert 1.0 == pytest.approx(silent.trust)


def test_it_follows_a_change() -> None:
    """After 200 tested tokens of another truth, little of the old one is left."""
    rng = np.random.default_rng(3)
    acceptance = Acceptance(AcceptancePool())
    rounds(acceptance, 0.9, 4, 300, rng)
    rounds(acceptance, 0.3, 4, 300, rng)
    assert 0.3 == pytest.approx(acceptance.rate, abs=0.15)


def test_it_never_believes_in_certainty() -> None:
    """All right or all wrong for ever stays within bounds."""
    lucky, unlucky = Acceptance(AcceptancePool()), Acceptance(AcceptancePool())
    for _ in range(1000):
        lucky.verified(8, 8)
        unlucky.verified(8, 0)
    assert (HIGHEST, LOWEST) == (lucky.rate, unlucky.rate)


def test_expected_tokens_of_a_round() -> None:
    """1 for no draft, 1 + a for one token, and the sum of survivals in general."""
    assert 1.0 == expected_tokens(0.7, 0)
    assert 1.7 == pytest.approx(expected_tokens(0.7, 1))
    assert sum(0.7**j for j in range(6)) == pytest.approx(expected_tokens(0.7, 5))


def test_smoothed_ignores_nonsense_and_damps_outliers() -> None:
    """NaN, infinity, zero and negatives are ignored; one absurd report moves the value by its share of eightfold at most."""
    delay = Smoothed(0.2)
    for value in (math.nan, math.inf, -1.0, 0.0):
        delay.observe(value)
    assert 0.0 == delay.value
    delay.observe(0.01)
    delay.observe(3600.0)
    assert delay.value <= 0.01 * (1 + 0.2 * 7) + 1e-12


def test_goodput_is_per_second_and_begins_at_its_first_rate() -> None:
    """Ten tokens a second are ten, whether they come one by one or in tens; silence lets the rate decay."""
    one, ten = Goodput(0.0), Goodput(0.0)
    for number in range(1, 301):
        one.observe(1, number / 10)
        if number % 10 == 0:
            ten.observe(10, number / 10)
    assert 10.0 == pytest.approx(one.value)
    assert 10.0 == pytest.approx(ten.value)
    one.observe(0, 40.0)
    assert one.value < 5.0


def test_goodput_of_who_is_new_is_the_plain_mean() -> None:
    """A first step that took the others' prompts along is soon forgotten: after two seconds of 20 tokens each it counts as
    what it is, one token in half a second."""
    goodput = Goodput(0.0)
    goodput.observe(1, 0.0)
    goodput.observe(1, 0.5)
    for step in range(1, 41):
        goodput.observe(1, 0.5 + step / 20)

    assert 41 / 2.5 == pytest.approx(goodput.value, rel=0.1)


def test_what_is_not_tested_fades_into_the_pool() -> None:
    """After 512 tokens without a guess an observation counts half, after thousands the session is like any other."""
    pool = AcceptancePool()
    rounds(Acceptance(pool), 0.8, 4, 2000, np.random.default_rng(2))
    hopeless = Acceptance(pool)
    for _ in range(64):
        hopeless.reported(0, 1)
    before = hopeless.rate
    hopeless.unguessed += 512
    assert before < hopeless.rate < 0.5 * pool.rate
    hopeless.unguessed += 8192
    assert pool.rate == pytest.approx(hopeless.rate, abs=0.01)
