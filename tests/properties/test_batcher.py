"""The draft batcher over caches and steps of any size: everybody gets what was asked for, or all that can be had."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from drafter.batcher import DraftBatcher
from specfleet.core.types import SamplingParams
from support.engine import FakeEngine, reference

GREEDY = SamplingParams(temperature=0.0)
REQUESTS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 12)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(REQUESTS, min_size=1, max_size=7), pages=st.integers(1, 40), tokens=st.integers(1, 40))
def test_everybody_is_served(lines: list[list[tuple[int, int]]], pages: int, tokens: int) -> None:
    """Lines that ask again and again, for texts that grow and shrink: each answer is the model's own text, cut only where
    the whole cache ends, in a bounded number of steps."""
    engine = FakeEngine(pages=pages, page_size=4)

    async def one(batcher: DraftBatcher, number: int, requests: list[tuple[int, int]]) -> None:
        line = batcher.line(GREEDY)
        for length, count in requests:
            text = [number % 50] * length
            guesses = [guess.token for guess in await line.draft(text, count)]
            assert reference(text, max(0, min(count, pages * 4 - length + 1))) == guesses
        line.close()

    async def run() -> None:
        batcher = DraftBatcher(engine, max_step_tokens=tokens)
        task = asyncio.create_task(batcher.run())
        async with asyncio.timeout(20):
            await asyncio.gather(*(one(batcher, number, requests) for number, requests in enumerate(lines)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert {} == engine.texts
    asked = sum(length + count for requests in lines for length, count in requests)
    assert len(engine.steps) <= asked * (len(lines) + 1)
