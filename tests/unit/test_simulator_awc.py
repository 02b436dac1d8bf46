"""Training `awc` on simulated scenarios: what a sweep holds, and that weights survive the way there and back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.awc.simulated import LENGTHS, Swept, evaluate, further, loaded, nearest, sweep
from scheduler.speculation.awc import WEIGHTS, Network

SHIPPED = json.loads(WEIGHTS.read_text())["weights"]


def test_a_sweep_scores_every_length() -> None:
    """The same seed the same scores; the best is one of them; inputs are the network's five."""
    (one,) = sweep(1, 3)
    assert len(LENGTHS) == len(one.scores) == len(one.inputs)
    assert min(one.scores) > 0.0
    assert {5} == {len(row) for row in one.inputs}
    assert 1.0 == one.share(one.best)
    assert one == sweep(1, 3)[0]


def test_lengths_are_compared_with_the_nearest_swept_one() -> None:
    """Target-only is like no drafted length."""
    assert [0, 2, 2, 3, 12] == [LENGTHS[nearest(length)] for length in (0, 1, 2, 3, 11)]


def test_weights_survive_the_way_there_and_back() -> None:
    """What is trained on is what is served."""
    again = loaded(SHIPPED).weights()
    rows = np.random.default_rng(0).uniform(-1.0, 1.0, (20, 5))
    before, after = Network(SHIPPED), Network(again)
    assert [before(row) for row in rows] == pytest.approx([after(row) for row in rows], rel=1e-4, abs=1e-4)


def test_training_moves_towards_the_labels() -> None:
    """Scenarios in which 12 is always best make it longer."""
    scores = tuple(float(place + 1) for place in range(len(LENGTHS)))
    inputs = tuple((0.3, 0.8, 0.2, 0.1, length / 12.0) for length in LENGTHS)
    scenarios = [Swept(scores, inputs)] * 20
    trained = Network(further(SHIPPED, scenarios, 0))
    assert trained(inputs[3]) > Network(SHIPPED)(inputs[3])
    assert evaluate(trained, scenarios)["of_best"] >= evaluate(Network(SHIPPED), scenarios)["of_best"]
