"""How a step's tokens are shared out by worth, against trying the best one each time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scheduler.batching.slo import Turns, queues_by_worth
from scheduler.estimators import HIGHEST
from scheduler.identities import UNLIMITED, Identity
from scheduler.types import SessionRecord
from specfleet.core.types import Grant, Mode
from support.estimates import known_acceptance


def queues(rng: np.random.Generator) -> tuple[dict[str, dict[int, SessionRecord]], dict[int, float | None]]:
    """Sessions that decode, by identity, and what an own token of each is worth; None for who takes no part."""
    found: dict[str, dict[int, SessionRecord]] = {}
    worths: dict[int, float | None] = {}
    number = 0
    for name in "abcd"[: int(rng.integers(1, 5))]:
        identity, weight = Identity(name, UNLIMITED, 0.0), float(rng.uniform(0.1, 3.0))
        found[name] = {}
        for _ in range(int(rng.integers(1, 6))):
            number += 1
            record = SessionRecord(number, 50, 49, True, 0.0, 0.0, identity=identity)
            record.acceptance = known_acceptance(float(rng.uniform(0.1, 0.95)))
            record.grant = Grant(Mode.STREAM, int(rng.integers(1, 5)))
            drafted = int(rng.integers(0, 6))
            said = rng.uniform(0.0, 1.0, drafted).tolist() if rng.random() < 0.5 else ()  # by its drafter, or nothing
            record.waiting(drafted, 0, True, said, float(rng.choice([0.0, 0.3])))
            found[name][number] = record
            worths[number] = None if rng.random() < 0.2 else weight * float(rng.choice([1.0, 2.0]))
    return found, worths


def survival(record: SessionRecord, drafted: int) -> float:
    """That the first so many drafted tokens are all right."""
    said = record.chances[:drafted]
    return math.prod(min(chance, HIGHEST) for chance in said) * record.acceptance.rate ** (drafted - len(said))


def best_one_each_time(
    decodes: dict[str, dict[int, SessionRecord]], worths: dict[int, float | None], tokens: int
) -> float:
    """Worth of so many tokens: of each identity the session whose turn it is offers its own token, and whoever has one
    its next drafted one."""
    given: dict[int, int] = {}
    total = 0.0
    for _ in range(tokens):
        offers = []
        for own in decodes.values():
            waiting = [n for n in own if n not in given and worths[n] is not None]
            offers += [(worths[waiting[0]], waiting[0])] if waiting else []
            offers += [
                (worths[n] * survival(own[n], given[n]), n) for n in own if n in given and given[n] <= own[n].offered
            ]
        if not offers:
            break
        worth, session = max(offers)
        total += worth
        given[session] = given.get(session, 0) + 1
    return total


@pytest.mark.parametrize("seed", range(200))
def test_the_tokens_shared_out_are_those_of_most_worth(seed: int) -> None:
    """As much worth as by choosing the best token again and again; nobody has more than is offered, and sessions of an
    identity come in their order."""
    rng = np.random.default_rng(seed)
    decodes, worths = queues(rng)
    tokens = int(rng.integers(0, 30))
    owns = queues_by_worth(decodes.values(), lambda record: worths[record.session])
    records, beside = Turns(owns).share_out(tokens)
    shared = [(record, 1 + beside.get(place, 0)) for place, record in enumerate(records)]
    total = sum(worths[one.session] * sum(survival(one, j) for j in range(count)) for one, count in shared)
    assert best_one_each_time(decodes, worths, tokens) == pytest.approx(total)
    assert sum(count for _, count in shared) <= tokens
    assert all(1 <= count <= 1 + one.offered for one, count in shared)
    for own in decodes.values():
        turns = [one.session for one, _ in shared if one.session in own]
        assert turns == sorted(turns)
