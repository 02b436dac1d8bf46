"""Random scenarios, and what a length is worth in them.

The worth is analytic here (`worth`); models.awc.simulated asks the simulator, for fewer scenarios.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scheduler.speculation.awc import features

Array = npt.NDArray[np.float64]

LENGTHS = (0, *range(2, 13))
"""What the sweep compares: target-only, and 2 to 12 tokens."""
SOLVING = 60
"""Turns of the fixed point between a step's time and how many sessions share it."""


@dataclass(frozen=True, slots=True)
class Scenarios:
    """Many of them, a row each. Times in seconds."""

    fixed: Array
    """Of a step."""
    per_token: Array
    context: Array
    """What reading a session's context costs in a step."""
    sessions: Array
    draft: Array
    """Per drafted token."""
    round_trip: Array
    acceptance: Array

    def __len__(self) -> int:
        return len(self.fixed)

    def __getitem__(self, rows: slice) -> Scenarios:
        return Scenarios(*(getattr(self, name)[rows] for name in self.__slots__))


def draw(count: int, rng: np.random.Generator) -> Scenarios:
    """From a notebook with a tiny pair to a loaded GPU far away, every order of magnitude alike."""

    def log_uniform(low: float, high: float) -> Array:
        return np.exp(rng.uniform(np.log(low), np.log(high), count))

    fixed = log_uniform(0.005, 0.08)
    return Scenarios(
        fixed=fixed,
        per_token=fixed * log_uniform(0.0005, 0.08),
        context=fixed * log_uniform(1e-4, 0.1),
        sessions=np.round(log_uniform(1, 128)),
        draft=fixed * log_uniform(0.005, 0.5),
        round_trip=log_uniform(0.0003, 0.1),
        acceptance=rng.uniform(0.02, 0.97, count),
    )


def rounds(scenarios: Scenarios, length: Array) -> tuple[Array, Array, Array]:
    """(step, time from verdict to verdict, tokens per verdict) where all sessions work with `length`, 0 for target-only.

    A round takes R = length * d + rho + W + T (algorithms.md, section 9). A session finds each of the n - 1 others in a step
    with a chance of T / R: its own step holds 1 + (n - 1) T / R sessions with c1 * (1 + length) + c3 * L of work each, and it
    first waits for half of the one under way, if there is one.
    """
    s = scenarios
    work = s.per_token * (1 + length) + s.context
    away, others = length * s.draft + s.round_trip, s.sessions - 1
    step = s.fixed + work
    for _ in range(SOLVING):
        share = step / (away + step)
        seconds = away + step + 0.5 * step * (1.0 - (1.0 - share) ** others)
        step = 0.5 * (step + s.fixed + work * (1.0 + others * step / seconds))
    local = s.fixed + s.sessions * work
    tokens = (1.0 - s.acceptance ** (length + 1)) / (1.0 - s.acceptance)
    drafted = length > 0
    return np.where(drafted, step, local), np.where(drafted, seconds, local), np.where(drafted, tokens, 1.0)


def worth(scenarios: Scenarios, length: Array) -> Array:
    """Tokens per second of a session. All sessions being alike, it is goodput, and speed, at once."""
    _, seconds, tokens = rounds(scenarios, length)
    return tokens / seconds


def sweep(scenarios: Scenarios) -> tuple[Array, Array]:
    """(best length, its worth) of each scenario."""
    table = np.stack([worth(scenarios, np.full(len(scenarios), float(k))) for k in LENGTHS])
    best = table.argmax(axis=0)
    return np.array(LENGTHS, dtype=float)[best], table.max(axis=0)


def observed(scenarios: Scenarios, length: Array, rng: np.random.Generator | None) -> Array:
    """What the policy would measure while all work with `length`: rows of features. With a generator, as noisily as it does:
    acceptance by a hundred or so tokens, times by a few verdicts."""
    step, seconds, tokens = rounds(scenarios, length)
    acceptance, trip, tpot = scenarios.acceptance, scenarios.round_trip, seconds / tokens
    if rng is not None:
        acceptance = acceptance + rng.normal(0.0, 0.05, len(acceptance))
        trip = trip * np.exp(rng.normal(0.0, 0.1, len(trip)))
        tpot = tpot * np.exp(rng.normal(0.0, 0.15, len(tpot)))
    busy = 1.0 - scenarios.fixed / step
    acceptance = np.clip(acceptance, 0.05, 0.97)
    return np.array([features(*row) for row in zip(busy, acceptance, trip, tpot, length, strict=True)])
