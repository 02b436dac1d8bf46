"""The simulator against the live fleet: one workload on both, with what was measured of this machine.

Bars that cannot fail on a busy machine; `python benchmarks/congruence.py` has the strict ones.
"""

from __future__ import annotations

import pytest

from benchmarks.congruence import Sides, measure
from support.pair import OWN_PROMPTS


@pytest.fixture(scope="module")
def sides() -> dict[str, Sides]:
    return measure(8, 2.0, OWN_PROMPTS)


@pytest.mark.parametrize("name", ["none", "fixed:4"])
def test_simulated_speed_is_of_the_live_ones_order(sides: dict[str, Sides], name: str) -> None:
    """Tokens/s and TPOT within a factor of 10: other jobs' load is not modelled, and may come between the two."""
    assert 0.1 < sides[name].ratio("tokens_per_s") < 10.0
    assert 0.1 < sides[name].ratio("tpot_s", "p50") < 10.0


def test_simulated_acceptance_is_the_live_one(sides: dict[str, Sides]) -> None:
    """Within 12 points: the same texts, but seeds differ, and so do the ends of drafts: they follow what a token costs, which
    other jobs' load changes."""
    assert abs(sides["fixed:4"].acceptance) < 0.12
    assert sides["none"].live["acceptance_rate"] is None
