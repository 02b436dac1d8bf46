"""When to stop drafting: a tiny model of the chance that a guess is right, learnt from verdicts while it is used.

**The chance.** Logistic regression on a few statistics of the draft distribution of each guess, after WISP (arXiv 2601.11652),
whose three-layer network takes 0.46 ms a token; this one takes microseconds, needs no training beforehand and follows a drift.
Learning is online Bayesian: a normal belief over the weights, moved by one Newton step per label (Spiegelhalter and
Lauritzen 1990; Bishop, PRML, 4.5), forgetting slowly. A verdict labels the guesses that were accepted and the first that was
not; of those behind it nobody knows.

**The rule.** A round of k guesses takes R + k*d seconds and commits 1 + s_1 + ... + s_k tokens, s_j being the product of the
first j chances. Tokens per second are highest when guessing goes on while the next guess earns them at the present rate or
better, s_{k+1} / d >= g, with g tokens per second over whole rounds (the marginal value theorem, Charnov 1976). The next
guess's own chance is not known before it is made: drafting stops where even a sure one would not pay, s_k < d*g. To count it
as an average one loses more than the drafting it saves, since guesses are right in runs (docs/log.md).

Pure: no clock, no randomness, no I/O but `load` and `save`, which take a path.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specfleet.core.step import Confidence, StepResult

log = logging.getLogger(__name__)

PRIOR = (0.35, 0.6, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Before anything was learnt: odds a little flatter than the draft model's own."""
PRIOR_VARIANCE = 0.25
FORGETTING = 0.9995
"""What a label still counts after the next: the last 2,000 or so make the model."""
BINS = 10
"""Of equal width over [0, 1], for the calibration error."""
TYPICAL = 0.6
"""Share of labelled guesses that are right, before anything was learnt."""
MEMORY = 0.1
"""What a label counts in the record of its generation."""
FORMAT = 1
"""Of saved files; others are ignored."""

Features = tuple[float, ...]
Seen = tuple[Confidence, Features, float]
"""A guess's confidence, what was made of it, and the chance that came out."""


def features(confidence: Confidence, place: int, record: float) -> Features:
    """What the chance is computed from, scaled to about one. `place`: guesses between this one and the confirmed text;
    `record`: share of this generation's newest labelled guesses that were right (guesses are right in runs)."""
    return (
        1.0,
        _log_odds(confidence.chosen, 1e-4),
        confidence.entropy,
        confidence.margin,
        confidence.spread,
        place / 8.0 if place < 16 else 2.0,
        0.0 if place else 1.0,
        _log_odds(record, 0.02),
    )


def remember(record: float, right: bool) -> float:
    """A generation's record after one more label."""
    return record + MEMORY * (right - record)


def when_of_use(survival: float, count: int, lag: float, record: float) -> float:
    """The chance that a branch of `count` guesses, all right with chance `survival`, is right once it has overtaken a verifier
    that decodes on, which takes `lag` guesses. Each of those to come is taken to be as good as its own were in the mean, or as
    `record` says of its generation, whichever is better: guesses are right in runs."""
    left = lag - count
    return survival * max(record, survival ** (1.0 / count)) ** left if count and left > 0.0 else survival


def _log_odds(chance: float, least: float) -> float:
    """Of a chance within [`least`, 1 - `least`]."""
    if chance < least:
        chance = least
    elif chance > 1.0 - least:
        chance = 1.0 - least
    return math.log(chance / (1.0 - chance))


def _product(a: Sequence[float], b: Sequence[float]) -> float:
    total = 0.0
    for at, value in enumerate(a):
        total += value * b[at]
    return total


class Predictor:
    """The chance that a guess is right, given that those before it are, for one kind of guess."""

    __slots__ = (
        "_covariance",
        "typical",
        "weights",
    )

    def __init__(self, weights: Sequence[float] = PRIOR) -> None:
        self.weights = [float(weight) for weight in weights]
        size = range(len(PRIOR))
        self._covariance = [[PRIOR_VARIANCE if row == column else 0.0 for column in size] for row in size]
        self.typical = TYPICAL
        """Discounted share of labelled guesses that were right: what a generation's record begins with."""

    def chance(self, x: Features) -> float:
        """In (0, 1). Plain floats, here and below: an array costs more than the whole product, and nothing of it could be
        compiled."""
        score = _product(self.weights, x)
        return 1.0 / (1.0 + math.exp(30.0 if score < -30.0 else -30.0 if score > 30.0 else -score))

    def learn(self, x: Features, right: bool) -> None:
        p = self.chance(x)
        covariance, weights = self._covariance, self.weights
        # Forgetting widens the belief, but never beyond what was believed before anything was known.
        widest = 0.0
        for at, row in enumerate(covariance):
            widest = max(widest, row[at])
        wider = min(1.0 / FORGETTING, PRIOR_VARIANCE / widest)
        along = [wider * _product(row, x) for row in covariance]
        variance = _product(along, x)
        information = p * (1.0 - p)
        gain = information / (1.0 + information * variance)
        # The new covariance times the point (Sherman and Morrison).
        step = (right - p) * (1.0 - gain * variance)
        for at, row in enumerate(covariance):
            way = along[at]
            weights[at] += step * way
            less = gain * way
            for column, other in enumerate(along):
                row[column] = wider * row[column] - less * other
        self.typical += 0.01 * (right - self.typical)

    def state(self) -> dict[str, Any]:
        return {"weights": self.weights, "covariance": self._covariance, "typical": self.typical}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Predictor:
        """Raises ValueError, KeyError or TypeError for what `state` did not write."""
        one = cls(state["weights"])
        one._covariance = [[float(value) for value in row] for row in state["covariance"]]
        one.typical = min(max(float(state["typical"]), 0.0), 1.0)
        size, rows = len(PRIOR), [one.weights, *one._covariance]
        finite = all(math.isfinite(value) for row in rows for value in row)
        if not finite or [len(row) for row in rows] != [size] * (size + 1):
            raise ValueError(f"must hold {size} finite weights and their covariance")
        return one


class Calibration:
    """Expected calibration error of predictions made before their labels were known (Naeini, Cooper, Hauskrecht 2015): over
    bins of predicted chance, the mean distance of what was predicted to what came, weighted by how often."""

    __slots__ = (
        "_count",
        "_excess",
    )

    def __init__(self) -> None:
        self._count = [0.0] * BINS
        self._excess = [0.0] * BINS
        """Predicted less observed, summed."""

    def observe(self, chance: float, right: bool) -> None:
        at = min(int(chance * BINS), BINS - 1)
        self._count[at] = self._count[at] * FORGETTING + 1.0
        self._excess[at] = self._excess[at] * FORGETTING + chance - right

    @property
    def error(self) -> float:
        """In [0, 1]; 0 of nothing."""
        return sum(map(abs, self._excess), 0.0) / (sum(self._count, 0.0) or 1.0)


class EarlyStop:
    """What one drafter knows of its guesses before one target: a predictor for every kind of guess."""

    __slots__ = (
        "_predictors",
        "calibration",
    )

    def __init__(self) -> None:
        self.calibration = Calibration()
        self._predictors: dict[str, Predictor] = {}

    def predictor(self, kind: str) -> Predictor:
        """`kind`: who guesses, and by which rule guesses are accepted."""
        if kind not in self._predictors:
            self._predictors[kind] = Predictor()
        return self._predictors[kind]

    def learn(self, kind: str, x: Features, chance: float, right: bool) -> None:
        """A guess that was given `chance` was labelled."""
        self.calibration.observe(chance, right)
        self.predictor(kind).learn(x, right)

    def save(self, path: Path) -> None:
        """Raises OSError. A reader sees the old file or the new one, never a part."""
        document = {"format": FORMAT, "kinds": {kind: one.state() for kind, one in self._predictors.items()}}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(document))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> EarlyStop:
        """What was saved there; a new one where nothing was, or nothing of use: it learns anew within minutes."""
        own = cls()
        try:
            document = json.loads(path.read_text())
            if document["format"] == FORMAT:
                own._predictors = {str(kind): Predictor.of(state) for kind, state in document["kinds"].items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("what was learnt of guesses cannot be read", extra={"path": str(path), "error": str(error)})
        return own


def state_file(folder: Path, draft: str, target: str) -> Path:
    """Where what is known of a pair is kept: names of models, with what no file name may hold taken out. Folders of the same
    name are told apart by a digest of the whole."""
    names = "--".join(re.sub(r"[^\w.-]+", "-", Path(name).name)[:60] for name in (draft, target))
    return folder / f"{names}-{hashlib.sha256(f'{draft} {target}'.encode()).hexdigest()[:8]}.json"


class Watch:
    """Follows a branch while the engine drafts it (specfleet.core.step.Stop): true once the next guess would not pay."""

    __slots__ = (
        "_least",
        "_predictor",
        "_record",
        "place",
        "seen",
        "stopped",
        "survival",
    )

    def __init__(self, predictor: Predictor, place: int, record: float, survival: float, least: float) -> None:
        """`place` of the first guess; `survival`, the chance that all guesses before it are right, and `least`, what it must
        not fall below."""
        self._predictor = predictor
        self.place = place
        """Guesses before the next one."""
        self._record = record
        self.survival = survival
        """Chance that all of them are right."""
        self._least = least
        self.stopped = False
        self.seen: list[Seen] = []
        """One for each guess, in their order."""

    def __call__(self, result: StepResult) -> bool:
        if result.confidence is None:
            return False
        x = features(result.confidence, self.place, self._record)
        chance = self._predictor.chance(x)
        self.seen.append((result.confidence, x, chance))
        self.survival *= chance
        self.place += 1
        self.stopped = self.survival < self._least
        return self.stopped
