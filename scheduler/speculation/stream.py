"""`stream`, or `stream:K`: draft-ahead everywhere. The verifier decodes every step and verifies up to K tokens beside."""

from __future__ import annotations

import numpy as np

from scheduler.speculation.policy import Constant, length_of
from scheduler.view import View
from specfleet.core.types import Grant, Mode

DEFAULT_LENGTH = 8


def build(argument: str, view: View, rng: np.random.Generator) -> Constant:
    return Constant(Grant(Mode.STREAM, length_of("stream", argument, DEFAULT_LENGTH)))
