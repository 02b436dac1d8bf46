"""More than a verifier can hold: everybody is served in turn, or told when to come back; memory stays where it was."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable

import pytest

from specfleet import AsyncClient, Overloaded, SamplingParams
from support.daemons import running, start_verifier, wait_until_empty

STREAMS = 256
ADMITTED = 48
PAGES_OF_TOKENS = 1024
"""Room for about a fifth of what is admitted."""
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


async def outcome(reply: Awaitable[object]) -> str:
    """ "done", or "refused" by a refusal that says when to come back; anything else raises."""
    try:
        await reply
    except Overloaded as error:
        assert error.retry_after is not None and 0.0 < error.retry_after <= 60.0
        return "refused"
    return "done"


@pytest.mark.timeout(600)
def test_many_streams_on_a_small_pool() -> None:
    """256 at once where 48 may be open and memory is for ten: all complete or are refused at admission with a retry time; the
    same again costs no more memory, and nothing is left."""

    async def wave(address: str) -> Counter[str]:
        async with AsyncClient(address, retries=0, timeout=300, connect_timeout=60) as client:
            replies = (client.generate(f"{n} " + "little birds sat on a wall " * 3, GREEDY) for n in range(STREAMS))
            return Counter(await asyncio.gather(*map(outcome, replies)))

    limits = ("--max-sessions", str(ADMITTED), "--kv-cache-tokens", str(PAGES_OF_TOKENS))
    with running(start_verifier("--speculation", "none", *limits)) as verifier:
        first = asyncio.run(wave(verifier.address))
        assert STREAMS == first["done"] + first["refused"] and first["done"] >= ADMITTED
        wait_until_empty(verifier)
        before = verifier.rss_bytes
        asyncio.run(wave(verifier.address))
        assert verifier.rss_bytes - before < 20 * 2**20
        wait_until_empty(verifier)
