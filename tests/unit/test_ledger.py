"""Every drafted token has one fate, on a whole fleet, whatever happens; and what a fleet learns from it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import aclosing

import pytest

from drafter.early_stop import EarlyStop
from drafter.observer import Silent
from specfleet.core.protocol import Draft, Open, Verdict
from specfleet.core.types import Mode, SamplingParams
from support.engine import reference
from support.fleet import GREEDY, Fleet, fleet

SEEDED, UNSEEDED = SamplingParams(seed=3, max_tokens=40), SamplingParams(max_tokens=40)


class Books(Silent):
    """Adds up what a drafter says."""

    def __init__(self) -> None:
        self.made = 0
        self.fates: Counter[str] = Counter()
        self.discards: Counter[str] = Counter()
        self.early: Counter[bool] = Counter()
        self.stops: Counter[bool] = Counter()
        self.seconds: Counter[bool] = Counter()
        self.error = 0.0

    def drafted(self, speculator: str, tokens: int, seconds: float) -> None:
        self.made += tokens

    def fate(self, fate: str, tokens: int, seconds: float, used: bool) -> None:
        self.fates[fate] += tokens
        self.seconds[used] += seconds  # type: ignore[assignment]

    def discarded(self, reason: str, tokens: int) -> None:
        self.discards[reason] += tokens

    def ahead(self, tokens: int, used: bool) -> None:
        self.early[used] += tokens

    def early_stop(self, right: bool) -> None:
        self.stops[right] += 1

    def calibration(self, error: float) -> None:
        self.error = error


async def settled(one: Fleet, books: Books, openings: list[Open]) -> list[Verdict]:
    """Run them all; the verdicts. Fails where a token is unaccounted for."""
    found = await asyncio.gather(*(one.collect(opening) for opening in openings))
    await one.quiet()
    verdicts = [message for _, messages in found for message in messages if isinstance(message, Verdict)]
    assert books.made == sum(books.fates.values())
    assert books.fates["accepted"] == sum(verdict.right for verdict in verdicts)
    assert books.fates["refused"] == sum(verdict.verified - verdict.right for verdict in verdicts)
    assert all(len(verdict.tokens) <= verdict.right + 1 for verdict in verdicts)
    # What was not verified was stale, trimmed or discarded, each with its reason.
    assert books.fates["stale"] + books.fates["trimmed"] + books.fates["discarded"] == sum(books.discards.values())
    return verdicts


@pytest.mark.asyncio
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("rightness", [2, 8])
@pytest.mark.parametrize("policy", ["fixed:4", "fixed:8", "stream", "stream:3", "random", "fair-goodput"])
async def test_the_books_balance(policy: str, rightness: int, ahead: bool, early: bool) -> None:
    """Drafted = accepted + refused + stale + trimmed + discarded, accepted and refused as the verdicts say; texts as ever."""
    books = Books()
    stop = EarlyStop() if early else None
    async with fleet(policy, rightness=rightness, ahead=ahead, early=stop, observer=books, delay=0.001) as one:
        prompts = [(n, n + 1, n + 2) for n in range(6)]
        openings = [Open(prompt=prompt, sampling=GREEDY) for prompt in prompts]
        await settled(one, books, openings)
        assert [reference(prompt, 40) for prompt in prompts] == [await one.generate(prompt) for prompt in prompts]
    if policy.startswith("fixed") and not ahead:
        assert 0 == sum(books.early.values())


@pytest.mark.asyncio
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("policy", ["fixed:4", "stream", "random"])
async def test_the_books_balance_with_trees(policy: str, ahead: bool) -> None:
    """Alternatives have fates, too; a round that one of them rescued commits a token more. Texts as ever."""
    # Which guesses come in time is the machine's business, so fleets are asked until one of them was rescued.
    for _ in range(10):
        verdicts = await _with_trees(policy, ahead)
        rescued = [verdict for verdict in verdicts if verdict.alternative_accepted]
        assert all(verdict.accepted < verdict.drafted and verdict.alternatives for verdict in rescued)
        if rescued:
            return
    pytest.fail("no alternative was ever accepted")


async def _with_trees(policy: str, ahead: bool) -> list[Verdict]:
    books, trees, sampling = Books(), EarlyStop(), SamplingParams(temperature=0.0, max_tokens=150)
    # Slow steps for few: the verifier's tokens are cheap.
    async with fleet(policy, rightness=6, ahead=ahead, early=trees, observer=books, delay=0.005, trees=True) as one:
        prompts = [(n, n + 1, n + 2) for n in range(3)]
        verdicts = await settled(one, books, [Open(prompt=prompt, sampling=sampling) for prompt in prompts])
        assert [reference(prompt, 40) for prompt in prompts] == [await one.generate(prompt) for prompt in prompts]
    return verdicts


@pytest.mark.asyncio
@pytest.mark.parametrize("sampling", [SEEDED, UNSEEDED])
async def test_the_books_balance_where_text_is_sampled(sampling: SamplingParams) -> None:
    """Both rules of acceptance."""
    books = Books()
    async with fleet("fixed:4", early=EarlyStop(), observer=books, delay=0.001) as one:
        await settled(one, books, [Open(prompt=(n, 2), sampling=sampling) for n in range(4)])


@pytest.mark.asyncio
async def test_the_books_balance_where_a_generation_is_given_up() -> None:
    """What was ahead then is counted, too."""
    books = Books()
    async with fleet("stream", observer=books, early=EarlyStop(), delay=0.002) as one:
        async with aclosing(one.drafter.run(Open(prompt=(1, 2), sampling=GREEDY))) as messages:
            async for message in messages:
                if isinstance(message, Verdict) and message.position > 10:
                    break
        await one.quiet()
    assert books.made == sum(books.fates.values())


@pytest.mark.asyncio
@pytest.mark.parametrize("trees", [False, True])
@pytest.mark.parametrize("policy", ["stream:3", "fixed:4", "random"])
async def test_every_guess_that_arrives_has_one_fate_on_the_verifier(policy: str, trees: bool) -> None:
    """Verified, stale, or there already; those dropped by last verdicts, waiting at the end, and come too late included."""
    books, stale = Books(), 0
    early = EarlyStop() if trees else None
    async with fleet(policy, rightness=5, observer=books, early=early, delay=0.001, trees=trees, eos=(7,)) as one:

        def count(tokens: int) -> None:
            nonlocal stale
            stale += tokens

        one.loop._observer.stale = count  # type: ignore[method-assign]
        verdicts = await settled(one, books, [Open(prompt=(n, 5), sampling=GREEDY) for n in range(8)])
        drafts = [message for message in one.connection.seen if isinstance(message, Draft)]
    arrived = sum(len(draft.tokens) + len(draft.alternatives) for draft in drafts)
    verified = sum(verdict.verified for verdict in verdicts)
    # A drafter calls those overtaken that it has sent and that were text before anybody looked.
    assert 0 <= arrived - verified - stale <= books.discards["overtaken"]
    assert verified + stale <= arrived
    lost = books.fates["stale"] + books.fates["trimmed"] + books.discards["overtaken"]
    # Nothing need be stale where every round waits for its draft and the last verdict comes in time.
    assert int(policy != "fixed:4") <= stale <= lost


@pytest.mark.asyncio
@pytest.mark.parametrize("policy", ["fixed:8", "stream:8", "random"])
async def test_no_draft_is_longer_than_its_drafter_wants(policy: str) -> None:
    """--max-draft 3 under grants of up to 8: a round verifies three at most, and does not wait for more; texts as ever."""
    async with fleet(policy, rightness=9, max_draft=3, draft_wait_seconds=30) as one:
        messages = (await one.collect(Open(prompt=(1, 2, 3), sampling=GREEDY)))[1]
        assert reference([1, 2, 3], 40) == await asyncio.wait_for(one.generate([1, 2, 3]), 20)
    rounds = [one.drafted for one in messages if isinstance(one, Verdict) and one.mode is Mode.ROUND]
    if policy == "fixed:8":
        assert 3 == max(rounds) and len(rounds) < 25


@pytest.mark.asyncio
async def test_drafts_end_early_and_say_how_likely_they_are() -> None:
    """A drafter that is seldom right soon sends less than it was granted, each token with its survival, never rising."""
    books, early = Books(), EarlyStop()
    async with fleet("fixed:8", rightness=3, ahead=False, early=early, observer=books) as one:
        sampling = SamplingParams(temperature=0.0, max_tokens=200)
        await settled(one, books, [Open(prompt=(n, 2, 3), sampling=sampling) for n in range(3)])
        drafts = [message for message in one.connection.seen if isinstance(message, Draft) and message.tokens]
    assert all(draft.survival is not None and len(draft.survival) == len(draft.tokens) for draft in drafts)
    assert all(list(draft.survival or ()) == sorted(draft.survival or (), reverse=True) for draft in drafts)
    late = drafts[len(drafts) // 2 :]
    assert sum(len(draft.tokens) for draft in late) / len(late) < 6
    assert books.stops[True] > books.stops[False]
    assert 0.0 < books.error < 0.2


@pytest.mark.asyncio
async def test_a_verdict_that_agrees_finds_the_next_round_begun() -> None:
    """With a drafter that is always right, rounds need not wait for drafts any more: most tokens were made ahead, and used."""
    books = Books()
    async with fleet("fixed:4", rightness=10, observer=books, delay=0.005) as one:
        await settled(one, books, [Open(prompt=(1, 2, 3), sampling=GREEDY)])
    assert books.early[True] > 20
    assert books.early[False] < 12


@pytest.mark.asyncio
@pytest.mark.parametrize("policy", ["fixed:4", "fixed:2", "random", "fair-goodput"])
async def test_the_books_balance_far_away(policy: str) -> None:
    """With drafts for what a verdict may say instead, which are worth it where it takes time to come. Texts as ever."""
    books, early = Books(), EarlyStop()
    async with fleet(policy, rightness=5, early=early, observer=books, delay=0.002, away=0.005) as one:
        prompts = [(n, n + 1, n + 2) for n in range(4)]
        await settled(one, books, [Open(prompt=prompt, sampling=GREEDY) for prompt in prompts])
        assert [reference(prompt, 40) for prompt in prompts] == [await one.generate(prompt) for prompt in prompts]
    sent = [message for message in one.connection.seen if isinstance(message, Draft)]
    assert not policy.startswith("fixed") or any(message.beside for message in sent)


@pytest.mark.asyncio
async def test_a_round_begins_before_its_verdict_is_known() -> None:
    """Where a verdict says what a branch beside supposed, the verifier does not wait for a draft: fewer round trips."""
    rounds, seconds = {}, {}
    for ahead in (False, True):
        async with fleet("fixed:4", rightness=5, ahead=ahead, early=EarlyStop(), away=0.02) as one:
            await one.generate((1, 2, 3))
            start = time.monotonic()
            _, messages = await one.collect(Open(prompt=(3, 4, 5), sampling=GREEDY))
            seconds[ahead] = time.monotonic() - start
            rounds[ahead] = sum(isinstance(message, Verdict) for message in messages)
    assert seconds[True] / rounds[True] < 0.85 * seconds[False] / rounds[False]
