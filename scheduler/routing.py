"""Which verifier a new generation goes to, decided from what the verifiers said of their load.

Load is sessions and what queues in front of them, not the time of a step: a verifier's step time stays as its last
sessions left it, so one that once looked slow would get no session, and never show that it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from specfleet.core.errors import ConfigurationError
from specfleet.core.types import Load

Loads = Sequence[Load | None]
"""One for each verifier, None for one that cannot be reached."""
DEFAULT = "p2c"


class RoutingPolicy(Protocol):
    def choose(self, loads: Loads) -> int | None:
        """Index of one of those that can be reached; None if there is none."""
        ...


def pressure(load: Load) -> tuple[bool, int]:
    """By which loads compare: a verifier without room for another token makes its sessions wait for each other."""
    return load.free_kv_tokens <= 0, load.queue + load.sessions


def pressures(loads: Loads) -> dict[int, tuple[bool, int]]:
    """Of those that can be reached."""
    return {at: pressure(load) for at, load in enumerate(loads) if load is not None}


class JoinShortestQueue:
    """`jsq`: the least loaded of all; of equal ones any."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, loads: Loads) -> int | None:
        known = pressures(loads)
        if not known:
            return None
        least = min(known.values())
        return _any([at for at, own in known.items() if own == least], self._rng)


class PowerOfTwoChoices:
    """`p2c`: the less loaded of two drawn at random (Mitzenmacher 2001). Drafters that decide from the same old reports do
    not all run to the same verifier, as they would with `jsq`."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, loads: Loads) -> int | None:
        known = pressures(loads)
        if not known:
            return None
        drawn = self._rng.choice(list(known), size=min(2, len(known)), replace=False)
        return min(map(int, drawn), key=known.__getitem__)  # the first of equal ones, and their order is random


class RoundRobin:
    """`round-robin`: the next one that can be reached, whatever its load."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._last: int | None = None

    def choose(self, loads: Loads) -> int | None:
        known = [at for at, load in enumerate(loads) if load is not None]
        if not known:
            return None
        if self._last is None:  # many drafters that start together must not all start with the same one
            self._last = _any(known, self._rng)
        else:
            self._last = next((at for at in known if at > self._last), known[0])
        return self._last


class Random:
    """`random`: any that can be reached."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, loads: Loads) -> int | None:
        known = [at for at, load in enumerate(loads) if load is not None]
        return _any(known, self._rng) if known else None


POLICIES: dict[str, Callable[[np.random.Generator], RoutingPolicy]] = {
    "jsq": JoinShortestQueue,
    "p2c": PowerOfTwoChoices,
    "round-robin": RoundRobin,
    "random": Random,
}


def build(name: str, rng: np.random.Generator) -> RoutingPolicy:
    """Raises ConfigurationError naming the policies there are."""
    if name not in POLICIES:
        raise ConfigurationError(f"routing policy {name!r} is not known; choose one of {', '.join(POLICIES)}")
    return POLICIES[name](rng)


def _any(among: Sequence[int], rng: np.random.Generator) -> int:
    return among[int(rng.integers(len(among)))]
