"""Shadow scoring: in LOCAL a drafter says how much of the verifier's text it would have guessed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from drafter.batcher import DraftBatcher
from drafter.speculators.model import Model
from drafter.speculators.ngram import Ngram
from specfleet.core.protocol import Open, Shadow
from specfleet.core.types import SamplingParams
from support.engine import FakeEngine, drafter_rule, reference, target_rule
from support.fleet import GREEDY, fleet


@asynccontextmanager
async def batching() -> AsyncIterator[tuple[FakeEngine, DraftBatcher]]:
    """A batcher at work on a fake engine."""
    engine = FakeEngine()
    batcher = DraftBatcher(engine)
    running = asyncio.create_task(batcher.run())
    try:
        yield engine, batcher
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def reports(one: Any) -> list[Shadow]:
    """Shadow messages that reached the verifier, in order."""
    return [message for message in one.connection.seen if isinstance(message, Shadow)]


@pytest.mark.asyncio
@pytest.mark.parametrize(("speculator", "sampling"), [("model", GREEDY), ("ngram", GREEDY)])
async def test_reports_come_while_the_verifier_writes_alone(speculator: str, sampling: SamplingParams) -> None:
    """After 80 tokens, then every 128: each tests 16 tokens, and the model's count is that of its rule."""
    async with fleet("none", rightness=7, speculator=speculator) as one:
        prompt = [1, 2, 3]
        sampling = SamplingParams(temperature=0.0, max_tokens=400)
        tokens = await asyncio.wait_for(one.generate(prompt, sampling), 20)
        assert reference(prompt, 400) == tokens
        found = reports(one)
        assert 2 <= len(found) <= 4
        text, rule = [*prompt, *tokens], drafter_rule(7)
        for report in found:
            assert 16 == report.tested
            if speculator == "model":
                places = range(report.position - 16, report.position)
                assert report.accepted == sum(rule(text[:at]) == text[at] for at in places)
        await one.quiet()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("policy", "sampling"),
    [("fixed:4", SamplingParams(temperature=0.0, max_tokens=200)), ("none", SamplingParams(max_tokens=200))],
)
async def test_no_reports_where_there_is_nothing_to_compare(policy: str, sampling: SamplingParams) -> None:
    """Not while drafting, which tests by itself, and not without a seed, where the chosen token is chance."""
    async with fleet(policy) as one:
        await asyncio.wait_for(one.collect(Open(prompt=(1, 2, 3), sampling=sampling)), 20)
        assert [] == reports(one)


@pytest.mark.asyncio
async def test_a_score_counts_places_and_leaves_the_line_fit_to_draft() -> None:
    """Right at every place of the target's text with the target's own rule; drafting goes on behind it."""
    async with batching() as (_, batcher):
        drafting = Model(batcher, 4096).start(GREEDY)
        text = [5, *reference([5], 60)]
        assert 16 == await drafting.score(text, 16)
        text[-3] = (text[-3] + 1) % 50
        assert 16 > (await drafting.score(text, 16) or 0)
        assert [target_rule(text)] == [guess.token for guess in await drafting.draft(text, 1)]
        drafting.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("length", [17, 18, 255, 256, 257, 265, 271, 272, 273, 280, 512, 513, 520, 528, 529])
async def test_a_score_is_not_torn_by_chunks_of_prefill(length: int) -> None:
    """Whatever the length of a text that the engine has not seen, all 16 places are counted, and the line and the engine agree
    on what is held."""
    async with batching() as (engine, batcher):
        drafting = Model(batcher, 4096).start(GREEDY)
        text = [5, *reference([5], length - 1)]
        assert 16 == await drafting.score(text, 16)
        (line,) = batcher._lines.values()
        assert line.held == text == engine.texts[line.sequence]
        assert [target_rule(text)] == [guess.token for guess in await drafting.draft(text, 1)]
        drafting.close()


@pytest.mark.asyncio
async def test_an_ngram_drafter_scores_by_lookup() -> None:
    """A text that repeats itself would have been guessed; one that never does would not."""
    drafting = Ngram().start(GREEDY)
    assert 8 == await drafting.score([1, 2, 3, 4] * 6, 8)
    assert 0 == await drafting.score(list(range(24)), 8)
