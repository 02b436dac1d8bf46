"""The production loop, sessions and drafters around fake engines: what must hold whatever the engine."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from specfleet.core.errors import InternalError, InvalidRequest, ModelMismatch, Overloaded, PositionGap, PromptTooLong
from specfleet.core.protocol import Close, Draft, Finished, Open, Opened, Verdict
from specfleet.core.types import FinishReason, Mode, SamplingParams
from support.engine import reference
from support.fleet import GREEDY, TABLE, fleet

POLICIES = (
    *("none", "fixed:1", "fixed:4", "fixed:8", "stream", "stream:3", "random"),
    *("fair-goodput", "fair-goodput:0", "goodspeed:12", "smartspec", "awc", "ladder"),
)


@pytest.mark.parametrize("speculator", ["model", "ngram"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.asyncio
async def test_text_is_the_targets_own(policy: str, speculator: str) -> None:
    """Under every policy and speculator, alone and 16 at a time, the text is what the target alone would write."""
    async with fleet(policy, speculator=speculator) as one:
        prompts = [[(7 * n + i) % 50 for i in range(3 + n)] for n in range(16)]
        expected = [reference(prompt, 40) for prompt in prompts]
        assert expected[0] == await one.generate(prompts[0])
        assert expected == await asyncio.gather(*(one.generate(prompt) for prompt in prompts))
        await one.quiet()


@pytest.mark.parametrize("rightness", [0, 10])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.asyncio
async def test_a_drafter_always_wrong_or_always_right_changes_nothing(policy: str, rightness: int) -> None:
    """Acceptance of 0 or 1 affects speed only."""
    async with fleet(policy, rightness=rightness) as one:
        assert reference([1, 2, 3], 40) == await one.generate([1, 2, 3])
        await one.quiet()


@pytest.mark.asyncio
async def test_accepted_plus_one_tokens_are_committed_each_round() -> None:
    """A verdict carries accepted + 1 tokens, cut only where the generation ends, and positions join without gap."""
    async with fleet("fixed:4", rightness=10) as one:
        _, messages = await one.collect(Open(prompt=(1, 2, 3), sampling=GREEDY))
        verdicts = [message for message in messages if isinstance(message, Verdict)]
        position = 3
        for verdict in verdicts:
            assert position == verdict.position
            position += len(verdict.tokens)
        assert all(len(verdict.tokens) == verdict.accepted + 1 for verdict in verdicts[:-1])
        assert max(verdict.accepted for verdict in verdicts) == 4
        assert isinstance(messages[0], Opened) and isinstance(messages[-1], Finished)
        assert position == 43


@pytest.mark.asyncio
async def test_text_ends_at_an_end_of_text_id() -> None:
    """Tokens behind an end id inside an accepted draft are cut off, and the reason is stop."""
    expected = reference([1, 2, 3], 40)
    eos = expected[17]
    cut = expected[: expected.index(eos) + 1]
    async with fleet("fixed:8", rightness=10, eos=(eos,)) as one:
        tokens, messages = await one.collect(Open(prompt=(1, 2, 3), sampling=GREEDY))
        assert cut == tokens
        assert messages[-1] == Finished(FinishReason.STOP, messages[-1].usage)  # type: ignore[union-attr]
        ignoring = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
        assert expected == await one.generate([1, 2, 3], ignoring)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.asyncio
async def test_a_resumed_session_goes_on_where_it_was(policy: str) -> None:
    """Open with committed output yields the rest of the same text."""
    expected = reference([5, 6], 40)
    async with fleet(policy) as one:
        for done in (1, 13, 39):
            rest = await one.generate([5, 6], output=tuple(expected[:done]))
            assert expected[done:] == rest
        assert await one.generate([5, 6], output=tuple(expected)) == []
        await one.quiet()


@pytest.mark.asyncio
async def test_closing_the_iterator_frees_everything() -> None:
    """A generation given up midway leaves no session and no page behind."""
    async with fleet("stream") as one:
        async with aclosing(one.drafter.run(Open(prompt=(1, 2), sampling=GREEDY))) as messages:
            async for message in messages:
                if isinstance(message, Verdict) and message.position > 10:
                    break
        await one.quiet()


@pytest.mark.asyncio
async def test_a_small_pool_makes_sessions_wait_not_fail() -> None:
    """With pages for about two of eight sessions, all texts come out right, one after another."""
    async with fleet("fixed:4", pages=8) as one:
        prompts = [[n, n + 1, n + 2] * 5 for n in range(8)]
        texts = await asyncio.gather(*(one.generate(prompt) for prompt in prompts))
        assert [reference(prompt, 40) for prompt in prompts] == texts
        await one.quiet()


@pytest.mark.asyncio
async def test_a_small_draft_pool_only_costs_speed() -> None:
    """A draft cache too small for its users, or for even one text, changes nothing in the text."""
    for pages in (1, 5):
        async with fleet("fixed:4", draft_pages=pages, draft_wait_seconds=0.05) as one:
            prompts = [[n, n + 1, n + 2] * 8 for n in range(6)]
            texts = await asyncio.gather(*(one.generate(prompt) for prompt in prompts))
            assert [reference(prompt, 40) for prompt in prompts] == texts
            await one.quiet()


@pytest.mark.asyncio
async def test_a_silent_drafter_costs_its_wait_only() -> None:
    """In ROUND, a drafter that sends nothing gets its text all the same, a token per wait."""
    async with fleet("fixed:4", draft_wait_seconds=0.01) as one:
        stream = await one.connection.verify()
        sampling = SamplingParams(temperature=0.0, max_tokens=5)
        await stream.send(Open(prompt=(1, 2), sampling=sampling, vocabulary_digest=TABLE.digest()))
        tokens: list[int] = []
        while (message := await stream.receive()) is not None:
            tokens += message.tokens if isinstance(message, Verdict) else []
        assert reference([1, 2], 5) == tokens
        await one.quiet()


@pytest.mark.asyncio
async def test_long_prompts_are_prefilled_in_chunks_beside_others() -> None:
    """A prompt longer than a step is computed over several, and others' steps go on in between."""
    async with fleet("none", max_step_tokens=32) as one:
        long = [n % 50 for n in range(200)]
        texts = await asyncio.gather(one.generate([1, 2, 3]), one.generate(long))
        assert [reference([1, 2, 3], 40), reference(long, 40)] == texts
        assert max(sum(len(item.tokens) for item in step) for step in one.engine.steps) <= 32
        assert any({item.sample for item in step} == {True, False} for step in one.engine.steps)


@pytest.mark.asyncio
async def test_a_failed_step_ends_its_sessions_and_nobody_elses() -> None:
    """An engine that raises ends that step's sessions with a typed error; the loop goes on."""
    async with fleet("none") as one:
        one.engine.fail_next = RuntimeError("out of luck")
        with pytest.raises(InternalError):
            await one.generate([1, 2])
        assert reference([1, 2], 40) == await one.generate([1, 2])
        await one.quiet()


async def _refused(open_: Open, **fields: object) -> Exception:
    async with fleet(**fields) as one:  # type: ignore[arg-type]
        stream = await one.connection.verify()
        await stream.send(open_)
        with pytest.raises(Exception) as caught:
            await stream.receive()
        await one.quiet()
        return caught.value


@pytest.mark.asyncio
async def test_refusals_are_typed_and_name_the_value() -> None:
    """A prompt beyond the context, a foreign id and a foreign vocabulary are refused before any work is done."""
    digest = TABLE.digest()
    error = await _refused(Open(prompt=(1,) * 5000, sampling=GREEDY, vocabulary_digest=digest))
    assert isinstance(error, PromptTooLong) and "5000" in str(error) and "4096" in str(error)
    error = await _refused(Open(prompt=(1, 50), sampling=GREEDY, vocabulary_digest=digest))
    assert isinstance(error, InvalidRequest) and "50" in str(error)
    error = await _refused(Open(prompt=(1,), sampling=GREEDY, vocabulary_digest=b"other"))
    assert isinstance(error, ModelMismatch)
    checksums = bytearray(TABLE.checksums())
    checksums[2 * 17] ^= 1
    other = Open(prompt=(1,), sampling=GREEDY, vocabulary_digest=b"x", vocabulary_checksums=bytes(checksums))
    error = await _refused(other)
    assert isinstance(error, ModelMismatch) and "id 17" in str(error) and "t17" in str(error)
    error = await _refused(Open(prompt=(1,), sampling=GREEDY, vocabulary_digest=digest), max_sessions=0)
    assert isinstance(error, Overloaded) and error.retry_after == 1.0


@pytest.mark.asyncio
async def test_a_true_gap_in_positions_ends_that_stream() -> None:
    """A draft that begins beyond every known position, by a drafter that knows them all, is OUT_OF_RANGE."""
    async with fleet("fixed:4", draft_wait_seconds=30) as one:
        stream = await one.connection.verify()
        await stream.send(Open(prompt=(1, 2), sampling=GREEDY, vocabulary_digest=TABLE.digest()))
        assert isinstance(await stream.receive(), Opened)
        verdict = await stream.receive()
        assert isinstance(verdict, Verdict) and verdict.mode is Mode.ROUND
        await stream.send(Draft(position=9, tokens=(1,), confirmed=3))
        with pytest.raises(PositionGap):
            await stream.receive()
        await one.quiet()


@pytest.mark.asyncio
async def test_close_frees_the_session() -> None:
    """Close ends a session whose verdicts nobody wants any more."""
    async with fleet("fixed:4", draft_wait_seconds=30) as one:
        stream = await one.connection.verify()
        await stream.send(Open(prompt=(1, 2), sampling=GREEDY, vocabulary_digest=TABLE.digest()))
        assert isinstance(await stream.receive(), Opened)
        await stream.send(Close())
        await one.quiet()


@pytest.mark.parametrize("policy", ["fixed:4", "stream", "random"])
@pytest.mark.asyncio
async def test_a_draft_model_that_fails_only_costs_speed(policy: str) -> None:
    """When the draft engine fails midway, the text goes on without guesses and without waiting for them."""
    async with fleet(policy, draft_wait_seconds=30) as one:
        one.draft_engine.fail_next = RuntimeError("out of luck")
        assert reference([1, 2, 3], 40) == await asyncio.wait_for(one.generate([1, 2, 3]), 10)
        await one.quiet()
