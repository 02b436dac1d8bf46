"""`awc`: a small network chooses each session's length from five measurements (DSD's adaptive window, arXiv 2511.21669).

Inputs: utilisation of the target, recent acceptance, round trip, recent time per token, previous length. Served as published:
the prediction is clamped to [1, 12], smoothed with 0.4 on the new value, and rounded; two predictions of 1 or less in a row
switch to target-only. The way back is not published; here it takes three predictions of 2 or more in a row.

The network is a residual MLP (two blocks, SiLU, one output) in awc.json; `python -m models.awc` trains it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scheduler.estimators import Smoothed
from scheduler.speculation.policy import OneByOne, no_argument
from scheduler.types import ItemOutcome, Outcome, SessionRecord
from scheduler.view import View
from specfleet.core.types import LOCAL, Grant, Mode

Vector = npt.NDArray[np.float32]

WEIGHTS = Path(__file__).with_name("awc.json")
SHORTEST, LONGEST = 1, 12
FIRST_LENGTH = 4
"""Until something was measured: the static length that DSD compares with."""
NEW_SHARE = 0.4
LEAVE_AT, LEAVE_AFTER = 1.0, 2
RETURN_AT, RETURN_AFTER = 2.0, 3
TPOT_SHARE = 0.4
"""What a new verdict counts in the recent time per token."""
USUAL_ROUND_TRIP = 0.02
"""Seconds, while nobody has measured it."""
MOST_BUSY = 0.97


def features(busy: float, acceptance: float, round_trip: float, tpot: float, length: float) -> tuple[float, ...]:
    """The network's inputs, each about within [-1, 2]. Times in seconds, by their logarithm: 1 ms to 1 s matter alike.

    `busy` is the share of a step that is the sessions' work and not its fixed cost, 1 - c0 / T.
    """
    return (
        min(MOST_BUSY, max(0.0, busy)),
        acceptance,
        0.5 * math.log10(min(1.0, max(1e-4, round_trip))) + 1.0,
        0.5 * math.log10(min(10.0, max(1e-4, tpot))) + 1.0,
        length / LONGEST,
    )


class Network:
    """y = w . h2 + b,   h_{i+1} = h_i + V_i silu(W_i h_i + b_i),   h_0 = silu(W x + b).

    The weights of what goes into silu are stored as trained and halved here: silu(x) = z + z tanh(z) with z = x / 2.
    """

    def __init__(self, weights: dict[str, list[float] | list[list[float]]]) -> None:
        def array(name: str, factor: float = 1.0) -> Vector:
            return (np.array(weights[name]) * factor).astype(np.float32)

        self._first, self._first_bias = array("first", 0.5), array("first_bias", 0.5)
        self._blocks = tuple(
            (array(f"in_{n}", 0.5), array(f"in_bias_{n}", 0.5), array(f"out_{n}"), array(f"out_bias_{n}"))
            for n in (0, 1)
        )
        self._last, self._last_bias = array("last"), float(array("last_bias"))

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Network:
        return cls(json.loads(path.read_text())["weights"])

    def __call__(self, inputs: Sequence[float]) -> float:
        hidden = _silu(self._first @ np.array(inputs, dtype=np.float32), self._first_bias)
        for inner, inner_bias, outer, outer_bias in self._blocks:
            hidden += outer @ _silu(inner @ hidden, inner_bias)
            hidden += outer_bias
        return float(self._last @ hidden) + self._last_bias


def _silu(half: Vector, bias: Vector) -> Vector:
    half += bias
    half += half * np.tanh(half)
    return half


@dataclass(slots=True)
class Window:
    """One session's length, from prediction to prediction."""

    smoothed: float = float(FIRST_LENGTH)
    local: bool = False
    streak: int = 0
    """Predictions in a row that speak for the other mode."""

    @property
    def length(self) -> int:
        """In tokens; 0 for target-only."""
        return 0 if self.local else round(self.smoothed)

    def take(self, prediction: float) -> None:
        clamped = min(LONGEST, max(SHORTEST, prediction))
        self.smoothed += NEW_SHARE * (clamped - self.smoothed)
        speaks = prediction >= RETURN_AT if self.local else prediction <= LEAVE_AT
        self.streak = self.streak + 1 if speaks else 0
        if self.streak >= (RETURN_AFTER if self.local else LEAVE_AFTER):
            self.local, self.streak = not self.local, 0


@dataclass(slots=True)
class _Session:
    window: Window = field(default_factory=Window)
    tpot: Smoothed = field(default_factory=lambda: Smoothed(TPOT_SHARE))


class Awc(OneByOne):
    def __init__(self, view: View, network: Network) -> None:
        self._view = view
        self._network = network
        self._sessions: dict[int, _Session] = {}
        self._busy = 0.0

    def opened(self, record: SessionRecord, now: float) -> Grant:
        self._sessions[record.session] = _Session()
        return Grant(Mode.ROUND, FIRST_LENGTH)

    def stepped(self, outcome: Outcome, now: float, worth: float | None = None) -> None:
        step = self._view.step_seconds.value
        self._busy = 1.0 - self._view.step_time.coefficients[0] / step if step else 0.0

    def decided(self, record: SessionRecord, outcome: ItemOutcome, now: float) -> Grant:
        session = self._sessions[record.session]
        window = session.window
        session.tpot.observe(record.interval / max(1, outcome.committed))
        window.take(
            self._network(
                features(
                    self._busy,
                    record.acceptance.rate,
                    record.round_trip.value or USUAL_ROUND_TRIP,
                    session.tpot.value or self._view.step_seconds.value,
                    window.length,
                )
            )
        )
        length = window.length
        return Grant(Mode.ROUND, length) if length else LOCAL

    def closed(self, record: SessionRecord) -> None:
        self._sessions.pop(record.session, None)


@cache
def _network() -> Network:
    return Network.load()


def build(argument: str, view: View, rng: np.random.Generator) -> Awc:
    no_argument("awc", argument)
    return Awc(view, _network())
