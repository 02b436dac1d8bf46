"""The simulator against the live fleet: one workload on both, with what was measured of this machine.

Bars that cannot fail on a busy machine; `python benchmarks/congruence.py` has the strict ones.
"""

from __future__ import annotations

import pytest

from benchmarks.congruence import Sides, each, measure
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
    """Within 6 points: chance per token in the simulator, this text's ups and downs in the fleet."""
    assert abs(sides["fixed:4"].acceptance) < 0.06
    assert sides["none"].live["acceptance_rate"] is None


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_chance_of_a_token_gives_the_share_of_tokens(rate: float) -> None:
    chance = each(rate, 4)
    assert rate == pytest.approx((chance + chance**2 + chance**3 + chance**4) / 4.0)
