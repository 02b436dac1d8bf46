"""More than one run: policies and seeds side by side, grids over parameters, and the largest load that a class still meets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.baselines import Policy
from simulator.config import Simulation
from simulator.document import Document, changed, checked
from specfleet.core.errors import ConfigurationError

RunOne = Callable[[Simulation, Policy, int], dict[str, Any]]
"""Plays one policy and seed; returns its figures."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of a grid."""

    labels: dict[str, Any]
    document: Document
    config: Simulation


def cells(document: Document, path: Path) -> list[Cell]:
    """All combinations, the last key fastest; one without labels where there is no grid. Each is checked before any runs.

    Raises:
        ConfigurationError: a key cannot be varied, or a value is refused.
    """
    grid = checked(document, path).grid
    base = {key: value for key, value in document.items() if key != "grid"}
    axes = [[(name, *choice) for choice in _choices(name, values, path)] for name, values in grid.items()]
    found = []
    for combination in itertools.product(*axes):
        own = base
        for _, _, changes in combination:
            own = changed(own, changes, path)
        found.append(Cell({name: label for name, label, _ in combination}, own, checked(own, path)))
    return found


def _choices(name: str, values: Any, path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Label and changes of each value of one axis."""
    if isinstance(values, list) and values:
        yield from ((value, {name: value}) for value in values)
    elif isinstance(values, dict) and values and all(isinstance(one, dict) for one in values.values()):
        yield from values.items()
    else:
        raise ConfigurationError(
            f"{path}: grid.{name} is {values!r}, must be a list of values for that key, or {{label: {{key: value, …}}}}"
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What a capacity search came to."""

    policy: str
    seed: int
    capacity: int
    """Largest load tried that was met, with the next larger one missed; 0 where not even the smallest was."""
    tried: dict[int, dict[str, Any]]
    """Figures by load."""


def capacity(cell: Cell, path: Path, policy: Policy, seed: int, run: RunOne) -> Found:
    """By bisection, for attainment falls with load."""
    wanted = cell.config.capacity
    assert wanted is not None
    tried: dict[int, dict[str, Any]] = {}

    def met(load: int) -> bool:
        config = checked(changed(cell.document, {wanted.vary: load}, path), path)
        tried[load] = run(config, policy, seed)
        return attainment(tried[load], wanted.service_class) >= wanted.attainment

    low, high = wanted.low, wanted.high
    if not met(low):
        return Found(policy.name, seed, 0, tried)
    if met(high):
        return Found(policy.name, seed, high, tried)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if met(middle) else (low, middle)
    return Found(policy.name, seed, low, tried)


def attainment(found: dict[str, Any], service_class: str | None) -> float:
    """Share of requests, of one class or of all, that kept their targets; 0 where so few got through that none was issued in
    the window."""
    kept = [one for name, one in found["slo"].items() if service_class in (None, name)]
    requests = sum(one["requests"] for one in kept)
    return sum(one["requests"] * one["attained"] for one in kept) / requests if requests else 0.0
