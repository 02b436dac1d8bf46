"""Drafting ahead: several guesses at once, and none behind what the text contradicts meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from drafter.speculators.model import Model
from specfleet.core.step import StepItem, StepResult, Stop
from support.engine import FakeEngine, drafter_rule, reference
from support.fleet import GREEDY, fleet


class Behind(FakeEngine):
    """A draft engine, each of whose steps lasts two of the target's. Notes what was asked of it at once, and what it made."""

    def __init__(self, rightness: int, target: FakeEngine) -> None:
        super().__init__(drafter_rule(rightness))
        self.target = target
        self.asked: list[int] = []
        self.made: list[int] = []

    async def step(self, items: Sequence[StepItem]) -> list[StepResult]:
        seen = len(self.target.steps)
        for _ in range(1000):
            if not self.target.texts or len(self.target.steps) >= seen + 2:
                break
            await asyncio.sleep(0.0001)
        await asyncio.sleep(0.001)  # for the verdict's way
        return await super().step(items)

    async def extend(
        self, items: Sequence[StepItem], count: int, stops: Sequence[Stop | None] = ()
    ) -> list[list[StepResult]]:
        rows = await super().extend(items, count, stops)
        self.asked.append(count)
        self.made.append(max(map(len, rows)))
        return rows


@pytest.mark.asyncio
@pytest.mark.parametrize("rightness", [10, 0])
async def test_guesses_that_the_text_contradicts_meanwhile_are_the_last(
    rightness: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a drafter that is always right all that was asked for is made, but at the end; of one that never is, one each."""
    monkeypatch.setattr(Model, "stride", 4)
    target = FakeEngine()
    draft = Behind(rightness, target)
    async with fleet("stream", engines=(target, draft)) as one:
        prompt = [1, 2, 3]
        assert reference(prompt, 40) == await asyncio.wait_for(one.generate(prompt, GREEDY), 60)
        await one.quiet()
    assert draft.asked
    if rightness:
        assert draft.asked[:-1] == draft.made[:-1]
    else:
        assert {1} == set(draft.made)
