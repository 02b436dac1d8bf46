"""Numbers that are drawn: written in a configuration as a plain number, or as one of

uniform: [low, high]        log_uniform: [low, high]        choice: [a, b, …]
normal: {mean: m, sd: s}    log_normal: {mean: m, cv: c}    (mean and coefficient of variation of the value itself)
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_plain_validator_function, plain_serializer_function_ser_schema

from specfleet.core.words import nearest

PAIRS = {"uniform": ("low", "high"), "log_uniform": ("low", "high")}
PARAMETERS = {"normal": ("mean", "sd"), "log_normal": ("mean", "cv")}
KINDS = ("uniform", "log_uniform", "normal", "log_normal", "choice")


@dataclass(frozen=True, slots=True)
class Limits:
    """What may come of it: from `low` to `high`, `low` itself not if `above`."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def refusal(self, value: float) -> str:
        """What it must be instead, or "" where it is right."""
        if not math.isfinite(value):
            return "a finite number"
        if value < self.low or (self.above and value == self.low):
            return f"{'above' if self.above else 'at least'} {self.low:g}"
        return f"at most {self.high:g}" if value > self.high else ""

    def clip(self, value: float) -> float:
        return min(self.high, max(self.low, value))


@dataclass(frozen=True, slots=True)
class Distribution:
    written: Any
    """As it stands in the configuration."""
    kind: str
    parameters: tuple[float, ...]
    limits: Limits = Limits()

    def draw(self, rng: random.Random) -> float:
        """One value. What a normal law has beyond the limits is moved to them."""
        first, last = self.parameters[0], self.parameters[-1]
        match self.kind:
            case "constant":
                return first
            case "uniform":
                return rng.uniform(first, last)
            case "log_uniform":
                return math.exp(rng.uniform(math.log(first), math.log(last)))
            case "choice":
                return rng.choice(self.parameters)
            case "normal":
                return self.limits.clip(rng.gauss(first, last))
            case _:
                spread = math.log1p(last * last)
                return self.limits.clip(rng.lognormvariate(math.log(first) - spread / 2.0, math.sqrt(spread)))

    def whole(self, rng: random.Random) -> int:
        """One value, rounded, at least 1."""
        return max(1, round(self.draw(rng)))


def constant(value: float) -> Distribution:
    return Distribution(value, "constant", (float(value),))


@dataclass(frozen=True, slots=True)
class Drawn(Limits):
    """Marks a configuration's field as a distribution within these limits: Annotated[Distribution, Drawn(0.0)]."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_plain_validator_function(
            lambda value: parse(value, self),
            serialization=plain_serializer_function_ser_schema(lambda value: value.written),
        )


NO_LIMITS = Limits()


def parse(value: Any, limits: Limits = NO_LIMITS) -> Distribution:
    """Raises ValueError saying what it must be."""
    if isinstance(value, Distribution):
        return value
    if not isinstance(value, Mapping):
        return Distribution(value, "constant", (_number(value, limits),), limits)
    if len(value) != 1:
        raise ValueError(f"a number, or one of {', '.join(KINDS)}, not {len(value)} keys")
    kind, given = next(iter(value.items()))
    if kind not in KINDS:
        raise ValueError(f"a number, or one of {', '.join(KINDS)}; {kind!r} is unknown{nearest(str(kind), KINDS)}")
    return Distribution(dict(value), kind, _parameters(kind, given, limits), limits)


def _parameters(kind: str, given: Any, limits: Limits) -> tuple[float, ...]:
    if kind in PARAMETERS:
        names = PARAMETERS[kind]
        if not isinstance(given, Mapping) or set(given) != set(names):
            raise ValueError(f"{kind}: {{{names[0]}: X, {names[1]}: X}}")
        mean = _number(given["mean"], limits if kind == "normal" else Limits(max(0.0, limits.low), limits.high, True))
        return mean, _number(given[names[1]], Limits(0.0))
    if not isinstance(given, list) or not given or (kind in PAIRS and len(given) != 2):
        raise ValueError(f"{kind}: [{'low, high' if kind in PAIRS else 'a, b, …'}]")
    own = Limits(max(0.0, limits.low), limits.high, True) if kind == "log_uniform" else limits
    numbers = tuple(_number(one, own) for one in given)
    if kind in PAIRS and numbers[0] > numbers[1]:
        raise ValueError(f"{kind}: [low, high] with low at most high")
    return numbers


def _number(value: Any, limits: Limits) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        raise ValueError(f"a number, or one of {', '.join(KINDS)}") from None
    refusal = limits.refusal(number)
    if refusal:
        raise ValueError(refusal if number == value else f"{refusal} (it holds {number:g})")
    return number
