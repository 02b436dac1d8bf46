"""The step-time model: it finds the truth from steps, stays near its profile where nothing is learnt, survives nonsense."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from scheduler.step_profile import UNPROFILED, StepProfile
from scheduler.step_time import BOUNDS, StepShape, StepTimeModel, solved
from specfleet.core.errors import ConfigurationError

TRUTH = np.array([0.008, 6e-4, 2e-7, 3e-8])


def mixed_load(rng: np.random.Generator) -> StepShape:
    """1 to 16 sequences that verify a few tokens at contexts of 20 to 800, one in ten prefilling a chunk."""
    return StepShape.of(
        (int(rng.integers(16, 200)) if rng.random() < 0.1 else int(rng.integers(1, 9)), int(rng.integers(20, 800)))
        for _ in range(rng.integers(1, 17))
    )


@pytest.mark.parametrize("profile", [UNPROFILED, StepProfile(0.012, 4e-4, 1e-7, 1e-8)])
def test_it_learns_the_truth_from_noisy_steps(profile: StepProfile) -> None:
    """After 200 steps with 5 % noise its mean error is within 10 %, from a profile 50 % off or from a guess."""
    rng = np.random.default_rng(1)
    model, errors = StepTimeModel(profile), []
    for _ in range(600):
        shape = mixed_load(rng)
        seconds = float(shape.features @ TRUTH * np.exp(rng.normal(0, 0.05)))
        errors.append(abs(model.predict(shape) / seconds - 1))
        model.observe(shape, seconds)
    assert np.mean(errors[200:]) < 0.1
    assert model.error < 0.1
    assert model.upper(mixed_load(rng)) > 0


def test_it_follows_a_machine_that_becomes_slower() -> None:
    """When all steps take twice as long, predictions follow within some hundred steps."""
    rng = np.random.default_rng(2)
    model = StepTimeModel(StepProfile(*map(float, TRUTH)))
    for number in range(2500):
        shape = mixed_load(rng)
        model.observe(shape, float(shape.features @ TRUTH) * (2 if number >= 500 else 1))
    shape = mixed_load(rng)
    assert 2.0 == pytest.approx(model.predict(shape) / float(shape.features @ TRUTH), rel=0.1)


def test_what_the_load_does_not_explore_stays_within_bounds_of_the_profile() -> None:
    """Thousands of equal steps teach one number; no coefficient leaves its bounds, and what is left is the machine's pace,
    which all of them share."""
    profile = StepProfile(0.01, 1e-4, 1e-7, 1e-8)
    model = StepTimeModel(profile)
    shape = StepShape.of([(1, 100)])
    for _ in range(3000):
        model.observe(shape, 0.5)
    assert 0.5 == pytest.approx(model.predict(shape), rel=0.01)
    scale = np.divide(model.coefficients, profile.coefficients)
    low, high = np.array(BOUNDS).T
    pace = scale / np.clip(scale, low, high)
    assert np.all(scale / pace.max() <= high + 1e-9)


def test_a_machine_that_is_shared_for_a_while_is_noticed_within_steps() -> None:
    """All steps take 1.6 times as long from one moment on: after 20 of them predictions are within 10 % again, for shapes
    that were not seen since, too."""
    rng = np.random.default_rng(0)
    model = StepTimeModel()

    def seconds(shape: StepShape) -> float:
        return 0.01 + 3e-4 * shape.tokens + 1e-6 * shape.cached

    def shapes(count: int, most: int) -> list[StepShape]:
        return [StepShape.of([(int(rng.integers(1, most)), int(rng.integers(1, 900)))]) for _ in range(count)]

    for shape in shapes(400, 60):
        model.observe(shape, seconds(shape) * float(rng.normal(1.0, 0.03)))
    for shape in shapes(20, 8):
        model.observe(shape, 1.6 * seconds(shape) * float(rng.normal(1.0, 0.03)))
    errors = [abs(model.predict(shape) / (1.6 * seconds(shape)) - 1.0) for shape in shapes(50, 60)]
    assert np.mean(errors) < 0.1


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0, 0.0])
def test_impossible_durations_teach_nothing(seconds: float) -> None:
    """NaN, infinite, negative and zero durations leave the model as it was."""
    model = StepTimeModel()
    before = model.coefficients
    model.observe(StepShape.of([(1, 100)]), seconds)
    assert 0 == model.observed
    assert before == model.coefficients


def test_shape_sums_over_sequences() -> None:
    """Tokens, cached tokens, and new tokens times total length."""
    assert StepShape(tokens=6, cached=30, pairs=5 * 15 + 1 * 21) == StepShape.of([(5, 10), (1, 20)])


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    """save and load are inverse."""
    profile = StepProfile(0.01, 1e-4, 1e-7, 1e-8, source="a laptop")
    profile.save(tmp_path / "profile.json")
    assert profile == StepProfile.load(tmp_path / "profile.json")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        json.dumps({"fixed": -1, "per_token": 1}),
        json.dumps({"fixed": 1}),
        json.dumps({"fixed": 0, "per_token": 0}),
    ],
)
def test_an_unreadable_profile_is_named(tmp_path: Path, text: str) -> None:
    """Broken JSON, missing, negative or all-zero fields: one error that names what is wrong."""
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="profile"):
        StepProfile.load(path)
    with pytest.raises(ConfigurationError, match=r"nowhere\.json"):
        StepProfile.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_normal_equations_are_solved(size: int) -> None:
    """As numpy does, however far apart the rows' magnitudes are."""
    rng = np.random.default_rng(size)
    for _ in range(200):
        rows = rng.normal(size=(size + 2, size)) * 10.0 ** rng.uniform(-3, 3, size)
        matrix, right = rows.T @ rows + np.diag(1e-3 * (rows**2).sum(0)), rng.normal(size=size)
        assert np.linalg.solve(matrix, right) == pytest.approx(solved(matrix.tolist(), right.tolist()), rel=1e-6)
