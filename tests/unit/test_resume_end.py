"""Resuming at the very end: everything was delivered but the word that it is over."""

from __future__ import annotations

import pytest

from specfleet.core.errors import PromptTooLong
from specfleet.core.protocol import Finished, Open, Opened
from specfleet.core.types import FinishReason, SamplingParams
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
