"""How long a step takes on a modelled verifier: from a measured or published profile, or from a card's roofline."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scheduler.step_profile import StepProfile
from simulator.engine import BatchShape
from specfleet.core.errors import ConfigurationError
from specfleet.core.words import nearest

PROFILES = files("simulator") / "profiles"
SHORTEST = 1e-5
"""A step takes at least so many seconds, whatever a fit says of shapes far from those measured."""


class Machine(Protocol):
    def seconds(self, shape: BatchShape) -> float:
        """Of a step of this shape."""
        ...

    def told(self) -> StepProfile:
        """What a verifier that was profiled on it would be started with."""
        ...


@dataclass(frozen=True, slots=True)
class Terms:
    """A step-time profile, as `specfleet profile` writes it, and one more term that published fits have."""

    fixed: float
    per_token: float
    per_cached: float = 0.0
    per_pair: float = 0.0
    per_sequence: float = 0.0
    """Seconds per sequence of the batch; may be negative where a fit is."""
    source: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.per_sequence) or self.per_token + self.per_sequence < 0.0:
            raise ConfigurationError(
                f"step profile: per_sequence is {self.per_sequence!r}, must not make a sequence of one token cost less than "
                "nothing"
            )
        StepProfile(self.fixed, self.per_token, self.per_cached, self.per_pair)  # raises for the others

    def seconds(self, shape: BatchShape) -> float:
        return max(
            SHORTEST,
            self.fixed
            + self.per_token * shape.tokens
            + self.per_cached * shape.cached
            + self.per_pair * shape.pairs
            + self.per_sequence * shape.sequences,
        )

    def told(self) -> StepProfile:
        return StepProfile(self.fixed, self.per_token, self.per_cached, self.per_pair, self.source)


@dataclass(frozen=True, slots=True)
class Card:
    """One accelerator. Published peaks; `efficiency` is what kernels reach of both."""

    bytes_per_second: float
    flops: float
    efficiency: float = 0.7


CARDS: Mapping[str, Card] = {
    "a100-80gb": Card(2.039e12, 312e12),
    "h100-sxm": Card(3.35e12, 989e12),
    "h200-sxm": Card(4.8e12, 989e12),
    "l40s": Card(0.864e12, 362e12),
    "rtx4090": Card(1.008e12, 165e12),
}
"""Memory bandwidth and dense bf16 throughput from the makers' data sheets."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model, as far as its speed depends on it."""

    parameters: float
    layers: int
    kv_heads: int
    head_size: int
    bytes_per_weight: float = 2.0

    @property
    def kv_bytes(self) -> float:
        """Per token: keys and values of all layers, two bytes each."""
        return 4.0 * self.layers * self.kv_heads * self.head_size


MODELS: Mapping[str, Shape] = {
    "qwen3-0.6b": Shape(0.6e9, 28, 8, 128),
    "qwen3-1.7b": Shape(1.7e9, 28, 8, 128),
    "qwen3-8b": Shape(8.2e9, 36, 8, 128),
    "qwen3-14b": Shape(14.8e9, 40, 8, 128),
    "qwen3-32b": Shape(32.8e9, 64, 8, 128),
    "llama-3.1-8b": Shape(8.0e9, 32, 8, 128),
    "llama-3.1-70b": Shape(70.6e9, 80, 8, 128),
}
"""From the models' own configuration files."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """max(bytes of weights and KV over bandwidth, 2 * parameters * tokens over FLOP/s) plus a constant for launches and
    everything else (algorithms.md, section 2). `cards` share the work evenly; each step then pays `exchange` more."""

    model: Shape
    card: Card
    cards: int = 1
    launch: float = 2e-3
    exchange: float = 1e-3
    """Seconds per step and card beyond the first, for what tensor-parallel ranks tell each other."""

    def seconds(self, shape: BatchShape) -> float:
        return self._seconds(shape.tokens, shape.cached)

    def _seconds(self, tokens: int, cached: int) -> float:
        reach = self.card.efficiency * self.cards
        read = (self.model.parameters * self.model.bytes_per_weight + self.model.kv_bytes * (cached + tokens)) / (
            self.card.bytes_per_second * reach
        )
        compute = 2.0 * self.model.parameters * tokens / (self.card.flops * reach)
        return self.launch + self.exchange * (self.cards - 1) + max(read, compute)

    def told(self) -> StepProfile:
        """The linear profile nearest to it, by relative error over decoding, verifying and prefilling batches."""
        shapes = [
            (batch * new, batch * context)
            for batch in (1, 2, 4, 8, 16, 32, 64, 128)
            for new in (1, 2, 5, 9)
            for context in (128, 1024, 4096)
        ] + [(chunk, 0) for chunk in (128, 512, 2048)]
        seconds = np.array([self._seconds(*shape) for shape in shapes])
        rows = np.array([(1.0, *shape) for shape in shapes]) / seconds[:, None]
        terms, *_ = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)
        fixed, per_token, per_cached = (max(0.0, float(term)) for term in terms)
        return StepProfile(max(fixed, SHORTEST), per_token, per_cached, source="roofline")


@dataclass(frozen=True, slots=True)
class Parallel:
    """A profile on several cards: what grows with the work is shared, the constant part as far as it is reading weights."""

    base: Machine
    cards: int
    scaling: float = 0.85
    """Efficiency: two cards take 1 / (2 * scaling) of one card's time."""

    def seconds(self, shape: BatchShape) -> float:
        return self.base.seconds(shape) / self._speedup

    def told(self) -> StepProfile:
        fixed, token, cached, pair = (one / self._speedup for one in self.base.told().coefficients)
        return StepProfile(fixed, token, cached, pair, f"{self.cards} cards")

    @property
    def _speedup(self) -> float:
        return 1.0 if self.cards == 1 else self.cards * self.scaling


def shipped() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(one.name.removesuffix(".json") for one in PROFILES.iterdir() if one.name.endswith(".json"))


def load_profile(name: str, folder: Path) -> Terms:
    """A profile by the name of a shipped one, or from a file (relative to `folder`).

    Raises:
        ConfigurationError: naming the profiles there are, or what is wrong with the file.
    """
    if name in shipped():
        return _terms(json.loads((PROFILES / f"{name}.json").read_text("utf-8")), name)
    path = folder / name
    if not path.is_file():
        raise ConfigurationError(f"a file, or one of {', '.join(shipped())}{nearest(name, shipped())}")
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read as a profile: {error}") from None
    return _terms(found, str(path))


def _terms(found: Any, name: str) -> Terms:
    known = [field.name for field in fields(Terms)]
    if not isinstance(found, dict):
        raise ConfigurationError(f"{name} is no step profile, must be a JSON object with {', '.join(known)}")
    for key in found:
        if key not in known:
            raise ConfigurationError(f"{name}: unknown key {key}{nearest(key, known)}")
    try:
        return Terms(**found)
    except TypeError as error:
        raise ConfigurationError(f"{name} is no step profile: {error}") from None
