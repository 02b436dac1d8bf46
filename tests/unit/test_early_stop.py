"""The chance that a guess is right: learnt from labels, calibrated, saved; and when it ends a draft."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest

from drafter.early_stop import EarlyStop, Features, Predictor, Watch, features, remember, when_of_use
from specfleet.core.step import Confidence, StepResult

SURE = Confidence(chosen=0.95, entropy=0.2, margin=0.9, spread=0.7)
UNSURE = Confidence(chosen=0.2, entropy=3.0, margin=0.05, spread=1.5)


def world(count: int, seed: int) -> list[tuple[Features, bool]]:
    """Guesses whose odds of being right are their own odds to the power 0.8, and better where the last one was right."""
    rng, record, found = np.random.default_rng(seed), 0.6, []
    for _ in range(count):
        chosen = float(rng.uniform(0.05, 0.99))
        one = Confidence(chosen, -math.log(chosen), chosen * 0.9, 1.0 - chosen)
        x = features(one, int(rng.integers(8)), record)
        right = bool(rng.random() < 1.0 / (1.0 + math.exp(-0.8 * x[1] - 0.5 * x[-1])))
        record = remember(record, right)
        found.append((x, right))
    return found


def test_before_anything_was_learnt_it_believes_the_draft_model() -> None:
    """A sure guess is likelier than an unsure one, and neither is certain."""
    chances = [Predictor().chance(features(one, 0, 0.6)) for one in (UNSURE, SURE)]
    assert 0.05 < chances[0] < 0.5 < chances[1] < 0.98


def test_it_learns_and_is_calibrated_on_what_it_has_not_seen() -> None:
    """After 2,000 labels the expected calibration error over the next 2,000 is below 0.05."""
    early = EarlyStop()
    for x, right in world(2000, seed=1):
        early.learn("model-greedy", x, early.predictor("model-greedy").chance(x), right)
    fresh = EarlyStop()
    for x, right in world(2000, seed=2):
        fresh.calibration.observe(early.predictor("model-greedy").chance(x), right)
    assert fresh.calibration.error < 0.05


def test_it_follows_a_drift() -> None:
    """Guesses that were right and are not any more are soon believed no more."""
    early, x = EarlyStop(), features(SURE, 2, 0.6)
    own = early.predictor("model-greedy")
    for _ in range(500):
        early.learn("model-greedy", x, own.chance(x), True)
    assert own.chance(x) > 0.9
    for _ in range(200):
        early.learn("model-greedy", x, own.chance(x), False)
    assert own.chance(x) < 0.35


def test_calibration_is_the_mean_distance_of_bins() -> None:
    """Two in ten said to be right, and all are: off by 0.8. Of nothing it is 0."""
    early = EarlyStop()
    assert 0.0 == early.calibration.error
    for _ in range(10):
        early.calibration.observe(0.2, True)
    assert 0.8 == pytest.approx(early.calibration.error)


def test_kinds_learn_apart_and_survive_a_restart(tmp_path: Path) -> None:
    """What greedy text taught says nothing of seeded text; both are as they were after saving and loading."""
    early, path = EarlyStop(), tmp_path / "pairs" / "draft--target.json"
    for x, right in world(200, seed=3):
        early.learn("model-greedy", x, 0.5, right)
    assert early.predictor("model-greedy").weights != early.predictor("model-seeded").weights
    early.save(path)
    loaded = EarlyStop.load(path)
    for kind in ("model-greedy", "model-seeded"):
        assert early.predictor(kind).state() == loaded.predictor(kind).state()
    assert ["draft--target.json"] == [one.name for one in path.parent.iterdir()]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", '{"format": 1}', '{"format": 2, "kinds": 3}'),
        '{"format": 1, "kinds": {"a": {"weights": [1], "covariance": [], "typical": 1}}}',
        '{"format": 1, "kinds": {"a": {"weights": "x", "covariance": [], "typical": 1}}}',
    ],
)
def test_a_file_of_no_use_is_a_fresh_start(tmp_path: Path, text: str) -> None:
    """Nothing there, or something else: it begins anew and says so in the log at most."""
    path = tmp_path / "state.json"
    assert EarlyStop.load(path).predictor("any").weights == Predictor().weights
    path.write_text(text)
    assert EarlyStop.load(path).predictor("any").weights == Predictor().weights


def test_a_draft_ends_where_it_is_too_doubtful() -> None:
    """Sure guesses go on; an unsure one that brings the branch below the least ends it. Without figures nothing ends."""
    watch = Watch(Predictor(), place=0, record=0.6, survival=1.0, least=0.5)
    assert [False, False, True] == [watch(StepResult(confidence=one)) for one in (SURE, SURE, UNSURE)]
    assert not Watch(Predictor(), 0, 0.6, 0.0, 0.5)(StepResult())


def test_a_branch_that_is_doubtful_already_ends_after_one_guess() -> None:
    """The chance that the guesses before it are right counts."""
    assert Watch(Predictor(), place=5, record=0.6, survival=0.4, least=0.5)(StepResult(confidence=SURE))


def test_a_branch_is_judged_by_what_it_will_be_when_it_is_of_use() -> None:
    """Behind the verifier by the guesses that it still lacks, each as good as its own or as usual; ahead as it is. A text
    without guesses is certain, so the first one is made."""
    assert 0.5**4 * 0.5**6 == pytest.approx(when_of_use(0.5**4, 4, lag=10.0, record=0.3))
    assert 0.5**4 * 0.9**6 == pytest.approx(when_of_use(0.5**4, 4, lag=10.0, record=0.9))
    assert 0.2 == when_of_use(0.2, 12, lag=10.0, record=0.6)
    assert 1.0 == when_of_use(1.0, 0, lag=10.0, record=0.6)


def test_a_prediction_takes_microseconds() -> None:
    """Far below the 50 microseconds that early stopping may cost a token (benchmarks/edge.py measures all of it)."""
    own, seconds = Predictor(), []
    for _ in range(500):
        start = time.perf_counter()
        own.chance(features(SURE, 3, 0.6))
        seconds.append(time.perf_counter() - start)
    assert sorted(seconds)[len(seconds) // 2] < 50e-6
