"""Speculation policies: the mode and length a session is granted next. One module each, one entry in the table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scheduler.speculation import awc, fair_goodput, fixed, goodspeed, ladder, none, random, smartspec, stream
from scheduler.speculation.policy import SpeculationPolicy
from scheduler.view import View
from specfleet.core.errors import ConfigurationError

Build = Callable[[str, View, np.random.Generator], SpeculationPolicy]

POLICIES: dict[str, Build] = {
    "fair-goodput": fair_goodput.build,
    "goodspeed": goodspeed.build,
    "smartspec": smartspec.build,
    "awc": awc.build,
    "ladder": ladder.build,
    "fixed": fixed.build,
    "stream": stream.build,
    "random": random.build,
    "none": none.build,
}


def build(name: str, view: View, rng: np.random.Generator) -> SpeculationPolicy:
    """A policy from `NAME` or `NAME:ARGUMENT`, as `--speculation` takes it.

    Raises:
        ConfigurationError: naming the policies there are.
    """
    kind, _, argument = name.partition(":")
    if kind not in POLICIES:
        raise ConfigurationError(f"speculation policy {name!r} is not known; choose one of {', '.join(POLICIES)}")
    return POLICIES[kind](argument, view, rng)
