"""`fixed:K`: every round drafts K tokens and the verifier waits for them. What most published systems compare with."""

from __future__ import annotations

import numpy as np

from scheduler.speculation.policy import Constant, length_of
from scheduler.view import View
from specfleet.core.types import Grant, Mode

DEFAULT_LENGTH = 4


def build(argument: str, view: View, rng: np.random.Generator) -> Constant:
    return Constant(Grant(Mode.ROUND, length_of("fixed", argument, DEFAULT_LENGTH)))
