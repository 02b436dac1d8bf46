"""From measured steps to the four terms of a step's time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import nnls

from scheduler.step_profile import StepProfile
from scheduler.step_time import StepShape


def fit(measured: Mapping[StepShape, float], source: str = "") -> StepProfile:
    """The profile of least squared *relative* errors with no negative term: an absolute fit would be about the longest
    steps only, and a negative term would pay for work in some load that nobody measured.

    Raises:
        ConfigurationError: nothing that a step must have was found in it.
    """
    seconds = np.array(list(measured.values()))
    rows = np.array([shape.features for shape in measured]) / seconds[:, None]
    # Tokens times lengths are millions where the constant is one: columns of one size keep the solver exact.
    size = np.maximum(rows.max(axis=0), 1e-300)
    terms = nnls(rows / size, np.ones(len(rows)))[0] / size
    fixed, per_token, per_cached, per_pair = map(float, terms)
    return StepProfile(fixed, per_token, per_cached, per_pair, source)


def predicted(profile: StepProfile, shape: StepShape) -> float:
    return shape.seconds(profile.coefficients)


def mean_error(profile: StepProfile, measured: Mapping[StepShape, float]) -> float:
    """Mean absolute relative error over measured steps."""
    return float(np.mean([abs(predicted(profile, shape) / seconds - 1.0) for shape, seconds in measured.items()]))
