"""The batch loop where it has gone wrong before: owners that leave early, drafts beyond the end, hostile distributions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from specfleet.core.errors import DeadlineExceeded, InvalidRequest, StreamInterrupted
from specfleet.core.protocol import Draft, Finished, Open, Opened, Verdict, VerifyRequest, VerifyResponse
from specfleet.core.step import DraftDistribution
from specfleet.core.types import FinishReason, SamplingParams
from support.engine import reference
from support.fleet import GREEDY, TABLE, fleet
from verifier.session import Session
from verifier.verifier import Limits


@pytest.mark.asyncio
async def test_an_owner_that_leaves_before_admission_ends_nobody_else() -> None:
    """A session whose owner was cancelled while it waited, and is withdrawn only after it was admitted, leaves no trace."""
    async with fleet("none", delay=0.01) as one:
        running = asyncio.create_task(one.generate([1, 2, 3]))
        await asyncio.sleep(0.02)
        session = Session(99, Open(prompt=(4, 5), sampling=GREEDY), (), 1000)
        session.opened.cancel()
        one.loop.submit(session)
        await asyncio.sleep(0.05)
        one.loop.withdraw(session)
        assert reference([1, 2, 3], 40) == await asyncio.wait_for(running, 10)
        await one.quiet()


@pytest.mark.parametrize("policy", ["fixed:8", "stream:8", "random"])
@pytest.mark.parametrize("speculator", ["model", "ngram"])
@pytest.mark.parametrize("room", [{"pages": 4}, {"context": 64}])
@pytest.mark.asyncio
async def test_a_text_that_fills_its_room_ends_there(policy: str, speculator: str, room: dict[str, Any]) -> None:
    """A drafter knows max_tokens, not the verifier's room: what it drafts beyond is never part of a step, which the engine
    would refuse as a whole, and nobody waits for it."""
    sampling = SamplingParams(temperature=0.0, max_tokens=500)
    async with fleet(policy, rightness=10, speculator=speculator, draft_wait_seconds=30, **room) as one:
        for length in (1, 7, 60, 62, 63):
            prompt = [1, 2, 3] * 21
            opening = Open(prompt=tuple(prompt[:length]), sampling=sampling)
            tokens, messages = await asyncio.wait_for(one.collect(opening), 10)
            assert reference(prompt[:length], 64 - length) == tokens
            assert isinstance(messages[-1], Finished) and FinishReason.LENGTH is messages[-1].reason
        await one.quiet()


@pytest.mark.parametrize("token", [50, 2**32 - 1])
@pytest.mark.asyncio
async def test_a_distribution_beyond_the_vocabulary_ends_its_own_stream_only(token: int) -> None:
    """Ids that the engine cannot look up are refused where they come in, before they share a step with anybody."""
    async with fleet("fixed:2", draft_wait_seconds=30, delay=0.002) as one:
        other = asyncio.create_task(one.generate([1, 2, 3]))
        stream = await one.connection.verify()
        sampling = SamplingParams(max_tokens=40)
        await stream.send(Open(prompt=(1, 2), sampling=sampling, vocabulary_digest=TABLE.digest()))
        assert isinstance(await stream.receive(), Opened)
        q = DraftDistribution((1, token), (0.5, 0.5))
        await stream.send(Draft(position=2, tokens=(1,), confirmed=2, last=True, q=(q,)))
        with pytest.raises(InvalidRequest, match=f"distributions: holds {token}, must be ids below .* 50"):
            while await stream.receive() is not None:
                pass
        assert reference([1, 2, 3], 40) == await asyncio.wait_for(other, 10)
        await one.quiet()


class Reader:
    """A drafter's stream, seen from the verifier: `told` is called with each verdict, which is not taken until it returns."""

    def __init__(self, told: Callable[[], Awaitable[None]]) -> None:
        self._messages: list[VerifyRequest] = [
            Open(prompt=(1, 2, 3), sampling=GREEDY, vocabulary_digest=TABLE.digest())
        ]
        self._told = told

    async def receive(self) -> VerifyRequest | None:
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop()

    async def send(self, message: VerifyResponse) -> None:
        if isinstance(message, Verdict):
            await self._told()


@pytest.mark.asyncio
async def test_verdicts_that_nobody_takes_end_their_stream() -> None:
    """After the idle seconds, in a way that can be resumed; a slow reader within them is served to the end."""
    async with fleet("none") as one:
        one.verifier._limits = Limits(kv_tokens=1000, idle_seconds=0.3)
        await asyncio.wait_for(one.verifier.serve(Reader(lambda: asyncio.sleep(0.02)), "me"), 10)
        with pytest.raises(StreamInterrupted, match=r"verdicts were not taken for 0\.3 s"):
            await asyncio.wait_for(one.verifier.serve(Reader(asyncio.Event().wait), "me"), 10)  # type: ignore[arg-type]
        await one.quiet()


@pytest.mark.asyncio
async def test_an_error_that_is_a_timeout_is_not_taken_for_a_slow_reader() -> None:
    """DeadlineExceeded is a TimeoutError, and stays what it is."""
    async with fleet("none") as one:

        async def late() -> None:
            for session in one.loop._sessions.values():
                session.outbox.put(DeadlineExceeded("out of time"))

        with pytest.raises(DeadlineExceeded, match="out of time"):
            await asyncio.wait_for(one.verifier.serve(Reader(late), "me"), 10)
