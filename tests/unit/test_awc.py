"""The `awc` policy: its network, what is served of a prediction, and the lengths it settles at."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from models.awc.__main__ import Residual, main, settled
from models.awc.scenarios import LENGTHS, Scenarios, draw, observed, rounds, sweep, worth
from scheduler import ItemOutcome, Outcome, SessionRecord, speculation
from scheduler.estimators import expected_tokens
from scheduler.speculation.awc import FIRST_LENGTH, LONGEST, WEIGHTS, Network, Window
from scheduler.step_profile import StepProfile
from scheduler.step_time import StepTimeModel
from scheduler.view import View
from specfleet.core.errors import ConfigurationError
from specfleet.core.types import LOCAL, Mode
from support.estimates import known_acceptance

RNG = np.random.default_rng(0)
NETWORK = Network.load()
COST = StepProfile(fixed=0.02, per_token=2e-4)


def one_scenario(acceptance: float, draft: float, trip: float) -> Scenarios:
    """A lone session on COST."""
    row = (COST.fixed, COST.per_token, 0.0, 1.0, draft, trip, acceptance)
    return Scenarios(*(np.array([float(value)]) for value in row))


def settle(acceptance: float, draft: float, trip: float, verdicts: int = 40) -> list[int]:
    """Lengths granted to a lone session whose rounds take what they take; 0 for target-only."""
    view = View(StepTimeModel(COST))
    policy = speculation.build("awc", view, RNG)
    record = SessionRecord(1, 200, 199, True, 0.0, 0.0)
    record.acceptance = known_acceptance(acceptance)
    scenario = one_scenario(acceptance, draft, trip)
    grants = [policy.opened(record, 0.0)]
    for _ in range(verdicts):
        step, seconds, tokens = (float(one[0]) for one in rounds(scenario, np.array([float(grants[-1].length)])))
        view.step_seconds.observe(step)
        record.told_before, record.told_at = 1.0, 1.0 + seconds
        if grants[-1].length:
            record.round_trip.observe(trip)
        outcome = ItemOutcome(1, 1, grants[-1].length, 0, max(1, round(tokens)), 0)
        policy.stepped(Outcome((outcome,), step), 1.0)
        grants.append(policy.decided(record, outcome, 1.0))
    policy.closed(record)
    assert all(one == LOCAL or one.mode is Mode.ROUND for one in grants)
    return [one.length for one in grants]


# --- lengths -------------------------------------------------------------------------------------------------------


def test_hopeless_drafts_end_in_target_only() -> None:
    """At an acceptance of 0.05 a session stays in LOCAL."""
    lengths = settle(0.05, 0.004, 0.01)
    assert FIRST_LENGTH == lengths[0]
    assert {0} == set(lengths[-20:])


def test_cheap_and_good_drafts_are_long() -> None:
    """At an acceptance of 0.95 and drafts for a fiftieth of a step each."""
    assert min(settle(0.95, 0.0004, 0.005)[-20:]) >= 8


def test_better_drafts_are_longer() -> None:
    """More acceptance never means shorter drafts, other things equal."""
    found = [settle(acceptance, 0.002, 0.01)[-1] for acceptance in (0.3, 0.6, 0.8, 0.95)]
    assert sorted(found) == found and found[0] < found[-1]


def test_no_length_is_above_twelve() -> None:
    """Whatever is measured, absurd numbers included."""
    view = View(StepTimeModel(COST))
    policy = speculation.build("awc", view, RNG)
    rng = np.random.default_rng(2)
    record = SessionRecord(1, 200, 199, True, 0.0, 0.0)
    policy.opened(record, 0.0)
    for _ in range(2000):
        record.acceptance = known_acceptance(float(rng.uniform(0.05, 0.97)))
        record.told_before, record.told_at = 1.0, 1.0 + float(10.0 ** rng.uniform(-6, 4))
        record.round_trip.observe(float(10.0 ** rng.uniform(-7, 3)))
        view.step_seconds.observe(float(10.0 ** rng.uniform(-5, 2)))
        outcome = ItemOutcome(1, 1, 4, 2, 3, 0)
        policy.stepped(Outcome((outcome,), 0.1), 1.0)
        assert 0 <= policy.decided(record, outcome, 1.0).length <= LONGEST


def test_shipped_lengths_are_worth_nearly_the_best() -> None:
    """On scenarios nobody has trained on, all sessions deciding alike: 95 % of the sweep's best on average, more than any
    fixed choice."""
    scenarios = draw(200, np.random.default_rng(99))
    _, most = sweep(scenarios)
    ours = worth(scenarios, settled(NETWORK, scenarios)) / most
    fixed = max(float((worth(scenarios, np.full(200, float(k))) / most).mean()) for k in LENGTHS)
    assert float(ours.mean()) > max(0.95, fixed)


# --- serving -------------------------------------------------------------------------------------------------------


def test_a_window_smooths_and_clamps() -> None:
    """0.4 of what is predicted, clamped to [1, 12] first, then rounded."""
    window = Window()
    window.take(9.0)
    assert 6 == window.length == round(4 + 0.4 * 5)
    for _ in range(50):
        window.take(1000.0)
    assert LONGEST == window.length
    window.take(-1000.0)
    assert 12 + 0.4 * (1 - 12) == pytest.approx(window.smoothed)


def test_two_low_predictions_in_a_row_switch_to_target_only() -> None:
    """One does not; nor do two with another between them."""
    window = Window(smoothed=8.0)
    for prediction in (0.5, 5.0, 1.0):
        window.take(prediction)
        assert window.length
    window.take(0.9)
    assert 0 == window.length


def test_the_way_back_takes_three() -> None:
    """And predictions of 2 or more: what hovers about the border does not swing."""
    window = Window(local=True)
    for prediction in (3.0, 3.0, 1.5, 3.0, 3.0):
        window.take(prediction)
        assert 0 == window.length
    window.take(3.0)
    assert window.length >= 2


def test_it_takes_no_argument() -> None:
    with pytest.raises(ConfigurationError, match="'awc' takes no argument, got '4'"):
        speculation.build("awc:4", View(StepTimeModel()), RNG)


def test_sessions_are_forgotten() -> None:
    """What is closed leaves nothing, and a new session under the same number starts anew."""
    policy = speculation.build("awc", View(StepTimeModel(COST)), RNG)
    record = SessionRecord(1, 200, 199, True, 0.0, 0.0)
    for _ in range(2):
        assert FIRST_LENGTH == policy.opened(record, 0.0).length
        policy.closed(record)
        policy.closed(record)
    assert {} == policy._sessions  # type: ignore[attr-defined]


# --- the network ---------------------------------------------------------------------------------------------------


def test_numpy_computes_what_torch_computes() -> None:
    """On random weights as on shipped ones: silu, residuals and halved weights are the same function."""
    torch.manual_seed(3)
    network = Residual()
    inputs = observed(draw(200, RNG), RNG.choice(LENGTHS, 200).astype(float), RNG)
    with torch.inference_mode():
        expected = network(torch.tensor(inputs, dtype=torch.float32)).numpy()
    served = Network(network.weights())
    assert expected == pytest.approx([served(row) for row in inputs], abs=1e-4)


def test_the_shipped_file_is_small_and_says_what_it_is() -> None:
    """Below 200 KB, with its held-out figures."""
    assert WEIGHTS.stat().st_size < 200_000
    document = json.loads(WEIGHTS.read_text())
    assert document["held_out"]["mean_absolute_error_tokens"] < 1.5
    assert document["held_out"]["settled_of_best"] > 0.95


def test_a_decision_is_quick() -> None:
    """The fastest of many, for the machine may be busy; 20 microseconds is the aim, five times that the bound."""
    inputs = (0.3, 0.7, 0.1, 0.2, 0.3)
    taken = []
    for _ in range(300):
        start = time.perf_counter()
        NETWORK(inputs)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 1e-4


# --- training ------------------------------------------------------------------------------------------------------


def test_scenarios_agree_with_the_formulas() -> None:
    """A lone session: no waiting, mu(k) tokens in k * d + rho + T; target-only a token a step."""
    scenario = one_scenario(0.8, 0.002, 0.01)
    for length in (2, 6):
        step = COST.fixed + COST.per_token * (1 + length)
        expected = expected_tokens(0.8, length) / (length * 0.002 + 0.01 + step)
        assert expected == pytest.approx(float(worth(scenario, np.array([float(length)]))[0]))
    assert 1 / (COST.fixed + COST.per_token) == pytest.approx(float(worth(scenario, np.array([0.0]))[0]))


def test_many_sessions_share_steps_and_wait() -> None:
    """More sessions never make steps shorter or a session faster, and a step never holds more than all of them."""
    scenarios = draw(300, np.random.default_rng(5))
    crowded = Scenarios(
        scenarios.fixed,
        scenarios.per_token,
        scenarios.context,
        scenarios.sessions * 2,
        scenarios.draft,
        scenarios.round_trip,
        scenarios.acceptance,
    )
    for length in (0.0, 5.0):
        many, few = (rounds(one, np.full(300, length)) for one in (crowded, scenarios))
        assert np.all(many[0] >= few[0] * (1 - 1e-6)) and np.all(many[1] >= few[1] * (1 - 1e-6))
        most = crowded.fixed + crowded.sessions * (crowded.per_token * (1 + length) + crowded.context)
        assert np.all(many[0] <= most * (1 + 1e-6))


def test_training_writes_what_the_policy_reads(tmp_path: Path) -> None:
    """A short run: the file loads, predicts finite numbers, and says how far off it is."""
    out = tmp_path / "awc.json"
    arguments = ["--scenarios", "200", "--epochs", "2", "--out", str(out)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert 0 == result.exit_code
    assert "mean_absolute_error_tokens" in result.output
    assert np.isfinite(Network.load(out)((0.3, 0.7, 0.1, 0.2, 0.3)))
