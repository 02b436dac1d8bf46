"""Drafting ahead: several guesses at once, and none further once a verdict has dropped their branch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from specfleet.core.step import StepItem, StepResult, Stop
from support.engine import FakeEngine, drafter_rule, reference
from support.fleet import GREEDY, fleet


class Bursts(FakeEngine):
    """A draft engine of half a millisecond a step that notes how many steps it was asked for, and how many it made."""

    def __init__(self, rightness: int) -> None:
        super().__init__(drafter_rule(rightness), delay=0.0005)
        self.asked = self.made = 0

    async def extend(
        self, items: Sequence[StepItem], count: int, stops: Sequence[Stop | None] = ()
    ) -> list[list[StepResult]]:
        rows = await super().extend(items, count, stops)
        self.asked += count
        self.made += max(map(len, rows))
        return rows


@pytest.mark.asyncio
@pytest.mark.parametrize("rightness", [10, 0])
async def test_a_burst_ends_with_its_branch(rightness: int) -> None:
    """All steps are made where every guess is right; where none is, those behind a verdict that comes meanwhile are not."""
    draft = Bursts(rightness)
    async with fleet("stream", engines=(FakeEngine(delay=0.004), draft)) as one:
        prompt = [1, 2, 3]
        assert reference(prompt, 40) == await asyncio.wait_for(one.generate(prompt, GREEDY), 60)
        await one.quiet()
    assert 0 < draft.asked
    assert (draft.made == draft.asked) is (rightness == 10)
