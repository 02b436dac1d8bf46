"""Routing policies over any loads: whom they choose, how evenly, and whom never."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from scheduler.routing import POLICIES, build, pressure
from specfleet.core.errors import ConfigurationError
from specfleet.core.types import Load

COUNTS = st.integers(0, 5)  # few values, so that ties are common
LOADS = st.builds(
    Load, queue=COUNTS, sessions=COUNTS, free_kv_tokens=st.sampled_from([0, 100]), step_seconds=st.just(0.02)
)
FLEETS = st.lists(st.none() | LOADS, min_size=1, max_size=8)
SEEDS = st.integers(0, 2**32 - 1)
ALIKE = Load(queue=0, sessions=2, free_kv_tokens=100, step_seconds=0.02)


def busy(sessions: int, queue: int = 0, free: int = 100) -> Load:
    return Load(queue=queue, sessions=sessions, free_kv_tokens=free, step_seconds=0.02)


def chosen(name: str, loads: list[Load | None], times: int, seed: int = 5) -> Counter[int | None]:
    policy = build(name, np.random.default_rng(seed))
    return Counter(policy.choose(loads) for _ in range(times))


@pytest.mark.parametrize("name", POLICIES)
@given(loads=FLEETS, seed=SEEDS)
def test_only_those_that_can_be_reached_are_chosen(name: str, loads: list[Load | None], seed: int) -> None:
    """One of them where there is one, else none; turn after turn."""
    policy = build(name, np.random.default_rng(seed))
    for _ in range(3):
        choice = policy.choose(loads)
        if any(load is not None for load in loads):
            assert choice is not None and loads[choice] is not None
        else:
            assert choice is None


@given(loads=FLEETS.filter(any), seed=SEEDS)
def test_jsq_chooses_the_least_loaded(loads: list[Load | None], seed: int) -> None:
    """Nobody who can be reached is less loaded than the one chosen."""
    choice = build("jsq", np.random.default_rng(seed)).choose(loads)
    assert choice is not None and (load := loads[choice]) is not None
    assert pressure(load) == min(pressure(one) for one in loads if one is not None)


@given(loads=FLEETS.filter(any), seed=SEEDS)
def test_p2c_never_chooses_the_worse_of_its_two(loads: list[Load | None], seed: int) -> None:
    """The two it draws are what its generator says; the choice is one of them and no worse than the other."""
    choice = build("p2c", np.random.default_rng(seed)).choose(loads)
    known = [at for at, load in enumerate(loads) if load is not None]
    drawn = list(np.random.default_rng(seed).choice(known, size=min(2, len(known)), replace=False))
    own = {int(at): pressure(load) for at in drawn if (load := loads[at]) is not None}
    assert choice in own and own[choice] == min(own.values())


def test_p2c_never_chooses_the_most_loaded_of_all() -> None:
    """Whatever two it draws, one of them is better."""
    assert 4 not in chosen("p2c", [busy(1), busy(1), busy(2), busy(3), busy(9)], 2000)


@pytest.mark.parametrize("name", ["jsq", "p2c", "random"])
def test_equal_ones_are_chosen_equally_often(name: str) -> None:
    """A chi-square test with a fixed seed: five equal verifiers and one that cannot be reached."""
    counts = chosen(name, [ALIKE, ALIKE, None, ALIKE, ALIKE, ALIKE], 5000)
    assert chisquare([counts[at] for at in (0, 1, 3, 4, 5)]).pvalue > 0.01


def test_random_does_not_look_at_loads() -> None:
    """A full verifier is drawn as often as an idle one."""
    counts = chosen("random", [busy(0), busy(90, queue=9, free=0), busy(3)], 3000)
    assert chisquare([counts[at] for at in range(3)]).pvalue > 0.01


@given(loads=FLEETS.filter(any), seed=SEEDS, turns=st.integers(1, 4))
def test_round_robin_is_even(loads: list[Load | None], seed: int, turns: int) -> None:
    """As many turns for everybody, in one order."""
    policy = build("round-robin", np.random.default_rng(seed))
    known = [at for at, load in enumerate(loads) if load is not None]
    order = [policy.choose(loads) for _ in range(turns * len(known))]
    assert dict.fromkeys(known, turns) == Counter(order)
    assert order[: len(known)] * turns == order


def test_round_robin_goes_on_when_one_is_lost() -> None:
    """The turn of one that cannot be reached goes to the next, and comes back with it."""
    policy = build("round-robin", np.random.default_rng(0))
    all_three: list[Load | None] = [ALIKE, ALIKE, ALIKE]
    first = policy.choose(all_three)
    assert first is not None
    lost = (first + 1) % 3
    without: list[Load | None] = [None if at == lost else ALIKE for at in range(3)]
    assert [(first + 2) % 3, first] == [policy.choose(without) for _ in range(2)]
    assert lost == policy.choose(all_three)


@pytest.mark.parametrize("name", ["jsq", "p2c"])
def test_a_verifier_without_room_comes_last(name: str) -> None:
    """Fewer sessions do not make up for no free KV cache; queued ones count like running ones."""
    assert {1: 50} == chosen(name, [busy(1, free=0), busy(7)], 50)
    assert {0: 50} == chosen(name, [busy(2), busy(1, queue=2)], 50)
    assert {0: 50} == chosen(name, [busy(2, free=0), None], 50)


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="'fastest' is not known; choose one of jsq, p2c, round-robin, random"):
        build("fastest", np.random.default_rng(0))
