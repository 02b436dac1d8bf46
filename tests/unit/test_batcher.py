"""The draft batcher: shared steps, rollbacks, jobs that are given up, caches too small, engines that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from drafter.batcher import PREFILL_CHUNK, DraftBatcher
from drafter.speculators import Guess
from drafter.speculators.model import Model
from specfleet.core.errors import InternalError, Overloaded
from specfleet.core.step import StepItem, StepResult
from specfleet.core.types import SamplingParams
from support.engine import FakeEngine, reference, target_rule

GREEDY = SamplingParams(temperature=0.0)


@asynccontextmanager
async def running(engine: FakeEngine, **config: Any) -> AsyncIterator[DraftBatcher]:
    """A batcher at work; fails if it ended by itself or leaves anything behind once all lines are closed."""
    batcher = DraftBatcher(engine, **config)
    task = asyncio.create_task(batcher.run())
    try:
        async with asyncio.timeout(10):
            yield batcher
            await asyncio.sleep(0.01)
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def tokens(guesses: Sequence[Guess]) -> list[int]:
    return [guess.token for guess in guesses]


class Sharing(FakeEngine):
    """A fake engine with a prefix cache of one text, whose pages count as free until somebody opens it."""

    def __init__(self, cached: list[int], **fields: Any) -> None:
        super().__init__(**fields)
        self.cached = cached
        self.surprise = False

    def open(self, sequence: int, tokens: Sequence[int]) -> int:
        super().open(sequence, tokens)
        length = (min(len(self.cached), len(tokens) - 1) // self.page_size) * self.page_size
        if list(tokens[:length]) == self.cached[:length]:
            self.texts[sequence] = list(tokens[:length])
        return len(self.texts[sequence])

    async def step(self, items: Sequence[StepItem]) -> list[StepResult]:
        if self.surprise:
            self.surprise = False
            raise Overloaded("a page had to be copied")
        return await super().step(items)


@pytest.mark.asyncio
async def test_a_line_drafts_what_its_model_would_write() -> None:
    """`count` tokens behind the text, whatever the text; a second call goes on from what is held."""
    engine = FakeEngine()
    async with running(engine) as batcher:
        line = batcher.line(GREEDY)
        assert reference([1, 2, 3], 5) == tokens(await line.draft([1, 2, 3], 5))
        text = [1, 2, 3, *reference([1, 2, 3], 5)]
        assert reference(text, 3) == tokens(await line.draft(text, 3))
        fed = sum(len(item.tokens) for step in engine.steps for item in step)
        assert len(text) + 2 == fed, "nothing is computed twice"
        line.close()
    assert ({}, 0) == (engine.texts, batcher.lines)


@pytest.mark.asyncio
async def test_several_lines_share_steps() -> None:
    """Eight generations cost about as many steps as one."""
    engine = FakeEngine()
    async with running(engine) as batcher:
        prompts = [[n, n + 1] for n in range(8)]
        lines = [batcher.line(GREEDY) for _ in prompts]
        drafts = await asyncio.gather(*(line.draft(text, 6) for line, text in zip(lines, prompts, strict=True)))
        assert [reference(prompt, 6) for prompt in prompts] == [tokens(draft) for draft in drafts]
        assert 6 == len(engine.steps)
        assert {8} == {len(step) for step in engine.steps}
        for line in lines:
            line.close()
    assert {} == engine.texts


@pytest.mark.asyncio
async def test_a_step_takes_no_more_than_its_tokens_and_takes_turns() -> None:
    """What does not fit into a step is first in the next, so nobody waits for others to finish."""
    engine = FakeEngine()
    async with running(engine, max_step_tokens=3) as batcher:
        lines = [batcher.line(GREEDY) for _ in range(6)]
        drafts = await asyncio.gather(*(line.draft([n], 4) for n, line in enumerate(lines)))
        assert [reference([n], 4) for n in range(6)] == [tokens(draft) for draft in drafts]
    assert all(sum(len(item.tokens) for item in step) <= 3 for step in engine.steps)
    assert 8 == len(engine.steps)
    order = [item.sequence for step in engine.steps for item in step]
    assert all(set(order[at : at + 6]) == set(range(1, 7)) for at in range(0, len(order), 6))


@pytest.mark.asyncio
async def test_long_texts_are_prefilled_in_chunks_beside_others() -> None:
    """A long prompt takes several steps, and others draft meanwhile."""
    engine = FakeEngine()
    async with running(engine) as batcher:
        long, short = batcher.line(GREEDY), batcher.line(GREEDY)
        text = [n % 50 for n in range(3 * PREFILL_CHUNK)]
        drafts = await asyncio.gather(long.draft(text, 1), short.draft([1], 3))
        assert (reference(text, 1), reference([1], 3)) == (tokens(drafts[0]), tokens(drafts[1]))
    assert 3 == len(engine.steps)
    assert PREFILL_CHUNK == max(len(item.tokens) for step in engine.steps for item in step)


@pytest.mark.asyncio
async def test_a_line_that_rolls_back_keeps_the_common_prefix() -> None:
    """Only what differs is computed anew, and at least the last token, which the first guess comes from."""
    engine = FakeEngine()
    async with running(engine) as batcher:
        line = batcher.line(GREEDY)
        await line.draft([1, 2, 3, 4, 5], 3)
        engine.steps.clear()
        assert reference([1, 2, 9], 1) == tokens(await line.draft([1, 2, 9], 1))
        assert [[9]] == [list(item.tokens) for step in engine.steps for item in step]
        engine.steps.clear()
        assert reference([1, 2, 9], 1) == tokens(await line.draft([1, 2, 9], 1))
        assert [[9]] == [list(item.tokens) for step in engine.steps for item in step]
        engine.steps.clear()
        assert reference([8], 1) == tokens(await line.draft([8], 1))
        assert [[8]] == [list(item.tokens) for step in engine.steps for item in step]


@pytest.mark.asyncio
async def test_a_job_that_is_given_up_holds_up_nobody() -> None:
    """A cancelled call ends between steps; its line drafts on from what was computed, others never notice."""
    engine = FakeEngine(delay=0.001)
    async with running(engine) as batcher:
        line, other = batcher.line(GREEDY), batcher.line(GREEDY)
        endless = asyncio.create_task(line.draft([1, 2], 100_000))
        beside = asyncio.create_task(other.draft([3], 20))
        await asyncio.sleep(0.01)
        endless.cancel()
        assert reference([1, 7], 2) == tokens(await line.draft([1, 7], 2))
        assert reference([3], 20) == tokens(await beside)
        line.close()
        other.close()
    assert ({}, 0) == (engine.texts, batcher.lines)


@pytest.mark.asyncio
async def test_closing_a_line_ends_what_it_held() -> None:
    """Pages are free again with the step that runs, though the job wants many more; twice, or never having drafted."""
    engine = FakeEngine(delay=0.001)
    async with running(engine) as batcher:
        line = batcher.line(GREEDY)
        job = asyncio.create_task(line.draft([1, 2], 100_000))
        await asyncio.sleep(0.01)
        assert 1 == batcher.lines
        job.cancel()
        line.close()
        line.close()
        batcher.line(GREEDY).close()
        async with asyncio.timeout(10):
            while (engine.texts, batcher.lines) != ({}, 0):  # noqa: ASYNC110 (the engine has no event for it)
                await asyncio.sleep(0.001)


@pytest.mark.asyncio
async def test_unseeded_lines_get_the_distributions_they_drew_from() -> None:
    """Acceptance by rejection needs q of each guess; greedy and seeded lines do without."""
    async with running(FakeEngine()) as batcher:
        unseeded = await batcher.line(SamplingParams()).draft([1, 2, 3], 3)
        assert all(guess.q is not None and guess.token in guess.q.token_ids for guess in unseeded)
        for sampling in (GREEDY, SamplingParams(seed=1)):
            assert {None} == {guess.q for guess in await batcher.line(sampling).draft([1, 2, 3], 3)}


# --- too little room -------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_text_beyond_the_whole_cache_gets_what_fits() -> None:
    """Guesses end where the draft model's cache does, without an error; a text that never fits gets none."""
    engine = FakeEngine(pages=2)
    async with running(engine) as batcher:
        line = batcher.line(GREEDY)
        assert reference([1] * 30, 3) == tokens(await line.draft([1] * 30, 8))
        assert [] == await line.draft([1] * 33, 8)
        assert reference([1, 2], 2) == tokens(await line.draft([1, 2], 2))


@pytest.mark.asyncio
async def test_several_texts_beyond_the_whole_cache_end_all_the_same() -> None:
    """They do not take each other's pages for ever."""
    engine = FakeEngine(pages=4)
    async with running(engine) as batcher:
        lines = [batcher.line(GREEDY) for _ in range(3)]
        drafts = await asyncio.gather(*(line.draft([n] * 60, 50) for n, line in enumerate(lines)))
        assert [reference([n] * 60, 5) for n in range(3)] == [tokens(draft) for draft in drafts]
    assert len(engine.steps) < 200


@pytest.mark.parametrize("pages", [3, 4, 6, 9])
@pytest.mark.parametrize("step_tokens", [5, 40, 1024])
@pytest.mark.asyncio
async def test_lines_that_fit_one_by_one_all_get_their_drafts(pages: int, step_tokens: int) -> None:
    """In a cache that holds one or two of eight texts, pages are taken and given back until all have what they asked for,
    over and over."""
    engine = FakeEngine(pages=pages)
    async with running(engine, max_step_tokens=step_tokens) as batcher:
        lines = [batcher.line(GREEDY) for _ in range(8)]
        for length in (20, 30, 40):
            texts = [[n] * (length + n % 3) for n in range(8)]
            drafts = await asyncio.gather(*(line.draft(text, 4) for line, text in zip(lines, texts, strict=True)))
            assert [reference(text, 4) for text in texts] == [tokens(draft) for draft in drafts]
    assert len(engine.steps) < 1500


@pytest.mark.asyncio
async def test_pages_of_the_prefix_cache_are_counted_once() -> None:
    """Pages that a line takes out of the cache when it opens are not there for the others of its first step."""
    cached = [1] * 64
    engine = Sharing(cached, pages=5)
    async with running(engine) as batcher:
        lines = [batcher.line(GREEDY) for _ in range(2)]
        drafts = await asyncio.gather(lines[0].draft([*cached, 2], 1), lines[1].draft([3] * 20, 1))
        assert [reference([*cached, 2], 1), reference([3] * 20, 1)] == [tokens(draft) for draft in drafts]


@pytest.mark.asyncio
async def test_an_engine_that_needs_more_than_was_counted_is_given_room() -> None:
    """Overloaded means that a shared page had to be copied: others give way, and nobody sees an error."""
    engine = Sharing([])
    async with running(engine) as batcher:
        idle, line = batcher.line(GREEDY), batcher.line(GREEDY)
        await idle.draft([1, 2], 1)
        engine.surprise = True
        assert reference([3], 4) == tokens(await line.draft([3], 4))
        assert 1 == batcher.lines, "the line without a job gave way"


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [InternalError("not finite"), RuntimeError("out of memory")])
@pytest.mark.asyncio
async def test_an_engine_error_ends_its_jobs_only(error: Exception) -> None:
    """The jobs of the failed step get a typed error, the batcher goes on, and the lines begin anew."""
    engine = FakeEngine()
    async with running(engine) as batcher:
        lines = [batcher.line(GREEDY) for _ in range(2)]
        await lines[0].draft([1, 2], 1)
        engine.fail_next = error
        results = await asyncio.gather(*(line.draft([1, 2], 3) for line in lines), return_exceptions=True)
        assert [InternalError, InternalError] == [type(result) for result in results]
        assert all("out of memory" not in str(result) for result in results)
        assert {} == engine.texts
        drafts = await asyncio.gather(*(line.draft([1, 2], 3) for line in lines))
        assert [reference([1, 2], 3)] * 2 == [tokens(draft) for draft in drafts]


@pytest.mark.asyncio
async def test_an_engine_error_after_the_job_was_given_up_is_nobodys() -> None:
    """A cancelled job whose step fails later takes no exception, and its line goes on."""

    class Late(FakeEngine):
        async def step(self, items: Sequence[StepItem]) -> list[StepResult]:
            await asyncio.sleep(0.01)
            return await super().step(items)

    engine = Late()
    async with running(engine) as batcher:
        line = batcher.line(GREEDY)
        job = asyncio.create_task(line.draft([1], 3))
        await asyncio.sleep(0.005)
        engine.fail_next = InternalError("too late")
        job.cancel()
        await asyncio.sleep(0.02)
        assert reference([1], 2) == tokens(await line.draft([1], 2))


@pytest.mark.asyncio
async def test_an_idle_batcher_waits() -> None:
    """With nothing to do, `run` sleeps until something comes; with work, it leaves the event loop to others."""
    engine = FakeEngine()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with running(engine) as batcher:
        counting = asyncio.create_task(count())
        line = batcher.line(GREEDY)
        await line.draft([1], 50)
        assert turns >= 50, "each step lets others run"
        settled = 0
        original = batcher._settle

        def settle() -> None:
            nonlocal settled
            settled += 1
            original()

        batcher._settle = settle  # type: ignore[method-assign]
        await asyncio.sleep(0.05)
        assert 0 == settled
        line.close()
        await asyncio.sleep(0.01)
        assert 1 == settled
        counting.cancel()
        await asyncio.gather(counting, return_exceptions=True)


@pytest.mark.asyncio
async def test_the_draft_model_says_nothing_beyond_its_context() -> None:
    """Guesses end at the draft model's own context; the target goes on alone."""
    engine = FakeEngine(context=10)
    async with running(engine) as batcher:
        drafting = Model(batcher, context_length=10).start(GREEDY)
        assert reference([1] * 8, 2) == tokens(await drafting.draft([1] * 8, 5))
        assert [] == await drafting.draft([1] * 10, 5)
        assert [] == await drafting.draft([1] * 12, 5)
        assert [] == await drafting.draft([1], 0)
        drafting.close()
    assert {} == engine.texts
    assert target_rule([1] * 8) == reference([1] * 8, 1)[0]


@pytest.mark.asyncio
async def test_a_burst_is_as_many_steps_as_fit() -> None:
    """One while no step was measured; then as the middle one of the newest says, within the most."""
    async with running(FakeEngine(delay=0.02)) as batcher:
        assert 1 == batcher.burst(1.0)
        await batcher.line(GREEDY).draft([1, 2, 3], 3)
        assert 1 == batcher.burst(0.001)
        assert 2 <= batcher.burst(0.1) <= 5
        assert 8 == batcher.burst(10.0)
