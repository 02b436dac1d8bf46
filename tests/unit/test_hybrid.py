"""`hybrid`: looked up where the text repeats itself, from the model where it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from drafter.batcher import DraftBatcher
from drafter.early_stop import EarlyStop
from drafter.speculators import Guess, Stoppable
from drafter.speculators.hybrid import Hybrid, HybridDrafting
from drafter.speculators.model import Model
from specfleet.core.types import SamplingParams
from support.engine import FakeEngine, reference
from support.fleet import GREEDY, fleet

REPEATS = [1, 2, 3, 4, 5, 9, 9, 1, 2, 3]


@asynccontextmanager
async def drafting(sampling: SamplingParams = GREEDY) -> AsyncIterator[tuple[FakeEngine, HybridDrafting]]:
    engine = FakeEngine()
    batcher = DraftBatcher(engine)
    running = asyncio.create_task(batcher.run())
    own = Hybrid(Model(batcher, 4096)).start(sampling)
    try:
        yield engine, own
    finally:
        own.close()
        await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert {} == engine.texts


def made(guesses: Sequence[Guess]) -> list[tuple[int, str]]:
    return [(guess.token, guess.source) for guess in guesses]


@pytest.mark.asyncio
async def test_a_text_that_repeats_itself_is_looked_up() -> None:
    """The model is not even asked; without a phrase of three tokens it is, and knows all of the text then."""
    async with drafting() as (engine, own):
        assert [(4, "ngram"), (5, "ngram")] == made(await own.draft(REPEATS, 2))
        assert [] == engine.steps
        text = [*REPEATS, 7]
        assert [(token, "model") for token in reference(text, 3)] == made(await own.draft(text, 3))


@pytest.mark.asyncio
async def test_only_the_model_is_stopped() -> None:
    """What is looked up comes at once."""
    async with drafting() as (_, own):
        assert isinstance(own, Stoppable)
        assert 2 == len(await own.draft_until(REPEATS, 2, lambda _: True))
        assert 1 == len(await own.draft_until([*REPEATS, 7], 4, lambda _: True))


@pytest.mark.asyncio
async def test_guesses_for_unseeded_text_say_where_they_come_from() -> None:
    """The rejection rule needs every guess's distribution: certain for what was looked up."""
    async with drafting(SamplingParams()) as (_, own):
        for text in (REPEATS, [*REPEATS, 7]):
            assert all(guess.q is not None for guess in await own.draft(text, 2))


@pytest.mark.asyncio
@pytest.mark.parametrize("policy", ["fixed:4", "stream", "random", "fair-goodput"])
async def test_text_is_the_targets_own(policy: str) -> None:
    """With early stopping and drafting ahead, whatever guesses."""
    async with fleet(policy, speculator="hybrid", early=EarlyStop()) as one:
        prompts = [[n, n + 1, n + 2] * 4 for n in range(6)]
        texts = await asyncio.gather(*(one.generate(prompt) for prompt in prompts))
        assert [reference(prompt, 40) for prompt in prompts] == texts
        await one.quiet()
