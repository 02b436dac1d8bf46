"""`none`: target-only. Every session stays in LOCAL. The baseline that must never be lost to."""

from __future__ import annotations

import numpy as np

from scheduler.speculation.policy import Constant, no_argument
from scheduler.view import View
from specfleet.core.types import LOCAL


def build(argument: str, view: View, rng: np.random.Generator) -> Constant:
    no_argument("none", argument)
    return Constant(LOCAL)
