"""What some drafters got and were asked for over time, in a fixed number of bins: for plots."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.counters import Row
from simulator.watch import Nowhere
from specfleet.core.protocol import Verdict

Array = npt.NDArray[np.floating[Any]]
BINS = 120
SHOWN = 12
"""Drafters that a plot can tell apart: the first ones."""


class Timeline(Nowhere):
    """A sink for one run of `duration` seconds; what comes later is left out."""

    def __init__(self, duration: float, clients: int) -> None:
        self.seconds = duration / BINS
        """Of a bin."""
        self.clients = min(clients, SHOWN)
        self.tokens: Array = np.zeros((self.clients, BINS))
        self._lengths: Array = np.zeros((self.clients, BINS))
        self._verdicts: Array = np.zeros((self.clients, BINS))

    def round(self, now: float, row: Row, verdict: Verdict) -> None:
        at = int(now / self.seconds)
        if row.client < self.clients and at < BINS:
            self.tokens[row.client, at] += len(verdict.tokens)
            self._lengths[row.client, at] += verdict.drafted
            self._verdicts[row.client, at] += 1

    @property
    def times(self) -> Array:
        """Middle of each bin, in seconds."""
        return np.linspace(0.5, BINS - 0.5, BINS) * self.seconds

    @property
    def goodput(self) -> Array:
        """(clients, bins) tokens per second."""
        return self.tokens / self.seconds

    @property
    def lengths(self) -> Array:
        """(clients, bins) mean verified length; nan where there was no verdict."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._lengths / self._verdicts
