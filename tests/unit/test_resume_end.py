"""Resuming at the very end: everything was delivered but the word that it is over."""

from __future__ import annotations

import pytest

from specfleet.core.errors import InvalidRequest, PromptTooLong
from specfleet.core.generation import GenerationRequest
from specfleet.core.protocol import Finished, Open, Opened
from specfleet.core.types import FinishReason, SamplingParams
from specfleet.wire import codec
from support.engine import reference
from support.fleet import fleet

ENDLESS = SamplingParams(temperature=0.0, max_tokens=1000)


@pytest.mark.parametrize("room", [{"context": 64}, {"pages": 4}], ids=["context", "pool"])
@pytest.mark.asyncio
async def test_a_text_that_filled_its_room_ends_there(room: dict[str, int]) -> None:
    """A generation that the context (or the pool) cut off goes on as far as there is room, and behind the last token it is
    told that it is over, not that its prompt is too long; one token more cannot have come from here."""
    async with fleet(**room) as one:  # type: ignore[arg-type]
        whole = await one.generate([5, 6], ENDLESS)
        assert 62 == len(whole)
        assert reference([5, 6], 62) == whole
        assert whole[40:] == await one.generate([5, 6], ENDLESS, output=tuple(whole[:40]))
        _, messages = await one.collect(Open(prompt=(5, 6), sampling=ENDLESS, output=tuple(whole)))
        opened, finished = messages
        assert isinstance(opened, Opened)
        assert isinstance(finished, Finished) and FinishReason.LENGTH is finished.reason
        assert 62 == finished.usage.completion_tokens
        with pytest.raises(PromptTooLong):
            await one.generate([5, 6], ENDLESS, output=(*whole, 1))
        with pytest.raises(PromptTooLong):
            await one.generate([5] * 64, ENDLESS)
        await one.quiet()


def test_more_output_than_was_asked_for_is_refused() -> None:
    """By name, with both numbers, at the border: to a drafter and to a verifier. All of it is nothing to refuse."""
    few = SamplingParams(max_tokens=2)
    request = GenerationRequest(prompt="x", sampling=few, output_token_ids=(1, 2, 3))
    opening = Open(prompt=(1,), sampling=few, output=(1, 2, 3))
    with pytest.raises(InvalidRequest, match="output_token_ids: has 3 tokens, more than max_tokens, which is 2"):
        codec.generate_request_from_proto(codec.generate_request_to_proto(request))
    with pytest.raises(InvalidRequest, match="output_token_ids: has 3 tokens, more than max_tokens, which is 2"):
        codec.verify_request_from_proto(codec.verify_request_to_proto(opening))
    whole = Open(prompt=(1,), sampling=few, output=(1, 2))
    assert whole == codec.verify_request_from_proto(codec.verify_request_to_proto(whole))
