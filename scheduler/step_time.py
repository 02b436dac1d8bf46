"""How long a step takes: four terms, refitted while serving.

    T = fixed + per_token * sum(n) + per_cached * sum(C) + per_pair * sum(n * L)

n new tokens, C cached tokens read, L total length of a sequence (WISP's form, arXiv 2601.11652). Recursive least squares
with forgetting refits it from every step, by relative errors. Tokens and batch move together in practice, so the fit leans
on the profile it came from (a ridge) and stays within bounds of it: what nothing in the load explores must not drift.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scheduler.step_profile import UNPROFILED, StepProfile, Terms

FORGETTING = 0.998
RIDGE = 0.1
"""Share of the information that the profile itself counts as."""
BOUNDS = ((0.2, 3.0), (0.05, 3.0), (0.2, 5.0), (0.2, 5.0))
"""Each coefficient stays within these multiples of a measured profile's (algorithms.md, section 9)."""
GUESS_BOUNDS = ((1e-3, 1e3),) * 4
"""Likewise where the profile is a guess."""
ERROR_SHARE = 0.05
PACE_SHARE = 0.2
"""What a step counts in the machine's present pace."""
SETTLED, SOLVE_EVERY = 64, 8
"""From so many steps on the fit is solved anew after every so many: each of them changes little by then."""
PLACES = tuple((row, column) for row in range(4) for column in range(row, 4))
"""Of a symmetric matrix, the half that is kept."""
SUDDEN = 0.5
"""And a step that took much more or less than foretold counts as if it had been so far off (log)."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step's time depends on, summed over its sequences."""

    tokens: int = 0
    cached: int = 0
    pairs: int = 0
    """Sum over sequences of new tokens times total length."""

    @classmethod
    def of(cls, sequences: Iterable[tuple[int, int]]) -> StepShape:
        """From (new tokens, cached tokens) of each sequence."""
        tokens = cached = pairs = 0
        for new, old in sequences:
            tokens += new
            cached += old
            pairs += new * (old + new)
        return cls(tokens, cached, pairs)

    @property
    def features(self) -> Terms:
        return 1.0, self.tokens, self.cached, self.pairs

    def seconds(self, coefficients: Terms) -> float:
        """What this takes where the terms cost so many seconds each."""
        fixed, per_token, per_cached, per_pair = coefficients
        return fixed + per_token * self.tokens + per_cached * self.cached + per_pair * self.pairs


class StepTimeModel:
    """Predicts steps, learns from them, and knows how wrong it has been."""

    def __init__(self, profile: StepProfile = UNPROFILED) -> None:
        self.error = 0.1
        """Smoothed relative error of predictions: the safety margin."""
        self.observed = 0
        """Steps learnt from."""
        self._bounds = GUESS_BOUNDS if profile is UNPROFILED else BOUNDS
        # A profile may say 0 of what its machine does not show; that, too, is only believed until steps say otherwise.
        self._unit = [
            max(own, guess * 1e-3) for own, guess in zip(profile.coefficients, UNPROFILED.coefficients, strict=True)
        ]
        self._pace = 0.0
        """Log of how much slower steps are at present than the fit says: who else uses the machine comes and goes faster
        than the fit forgets."""
        # Normal equations in multiples of the profile, of errors relative to each step's own time.
        self._information = [RIDGE if row == column else 0.0 for row, column in PLACES]
        self._moment = [RIDGE] * 4
        self._scale = [1.0] * 4
        self._coefficients = self._scaled()

    @property
    def coefficients(self) -> Terms:
        """Seconds."""
        return self._coefficients

    def _scaled(self) -> Terms:
        pace = math.exp(self._pace)
        fixed, token, cached, pair = (unit * scale * pace for unit, scale in zip(self._unit, self._scale, strict=True))
        return fixed, token, cached, pair

    def predict(self, shape: StepShape) -> float:
        """Seconds that a step of this shape will take."""
        return shape.seconds(self._coefficients)

    def upper(self, shape: StepShape) -> float:
        """The same with the margin that its own errors suggest."""
        return self.predict(shape) * (1.0 + 2.0 * self.error)

    def observe(self, shape: StepShape, seconds: float) -> None:
        """A step of this shape took `seconds`."""
        if not math.isfinite(seconds) or seconds <= 0.0:
            return
        expected = self.predict(shape)
        self.error += ERROR_SHARE * (min(1.0, abs(expected / seconds - 1.0)) - self.error)
        self.observed += 1
        self._pace += PACE_SHARE * min(SUDDEN, max(-SUDDEN, math.log(seconds / expected)))
        row = [one * unit / seconds for one, unit in zip(shape.features, self._unit, strict=True)]
        ridge = RIDGE * (1.0 - FORGETTING)
        self._information = [
            FORGETTING * old + row[i] * row[j] + (ridge if i == j else 0.0)
            for old, (i, j) in zip(self._information, PLACES, strict=True)
        ]
        self._moment = [FORGETTING * old + one + ridge for old, one in zip(self._moment, row, strict=True)]
        if self.observed < SETTLED or self.observed % SOLVE_EVERY == 0:
            self._scale = self._solve()
        self._coefficients = self._scaled()

    def _solve(self) -> list[float]:
        """Least squares within bounds: what would leave them is held there, and the rest solved again without it."""
        rows = [[0.0] * 4 for _ in range(4)]
        for (i, j), value in zip(PLACES, self._information, strict=True):
            rows[i][j] = rows[j][i] = value
        scale, free, held = list(self._scale), [0, 1, 2, 3], list[int]()
        while free:
            moment = [self._moment[i] - sum([rows[i][j] * scale[j] for j in held]) for i in free]
            outside = []
            for i, value in zip(free, solved([[rows[i][j] for j in free] for i in free], moment), strict=True):
                low, high = self._bounds[i]
                scale[i] = min(high, max(low, value))
                if scale[i] != value:
                    outside.append(i)
            if not outside:
                break
            held = sorted(held + outside)
            free = [i for i in free if i not in outside]
        return scale


def solved(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """x of `matrix` x = `right`, for a symmetric positive definite matrix of a few rows: elimination, which needs no pivoting
    there. Asked for between steps, where numpy's first small call takes 100 microseconds: its code is in no cache any more."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for place, own in enumerate(rows):
        for row in rows[place + 1 :]:
            share = row[place] / own[place]
            for column in range(place, len(own)):
                row[column] -= share * own[column]
    found = [0.0] * len(rows)
    for place in range(len(rows) - 1, -1, -1):
        own = rows[place]
        known = sum([own[column] * found[column] for column in range(place + 1, len(rows))])
        found[place] = (own[-1] - known) / own[place]
    return found
