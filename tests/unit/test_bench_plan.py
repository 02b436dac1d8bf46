"""What a run asks, and when: closed loops, Poisson arrivals, published traces."""

from __future__ import annotations

from specfleet.bench.plan import LANES, WORDS_PER_TOKEN, Wanted, Words, plan, replay
from specfleet.bench.traces import BLOCK_TOKENS, Row
from specfleet.core.types import SamplingParams

WANTED = Wanted(prompts=("one two three", "four"), classes=("a", "b"), sampling=SamplingParams(max_tokens=50, seed=7))
ROWS = (Row(0.0, 20, 10), Row(4.0, 400, 90), Row(6.0, 8, 1))


def test_the_closed_loop_has_lanes_and_no_moments() -> None:
    found = plan(WANTED, 3)

    assert (LANES, True, 3) == (found.lanes, found.closed, found.streams)
    assert [("one two three", "a", 7), ("four", "b", 8), ("one two three", "a", 9)] == [
        (one.prompt, one.service_class, one.sampling.seed) for one in found.requests
    ]
    assert {None} == {one.due for one in found.requests}


def test_a_rate_has_moments_and_as_many_lanes_as_requests() -> None:
    """Lanes limit it where they are said; an infinite rate is a closed loop then, and has no moments."""
    open_loop, limited = plan(WANTED, 100, 5.0), plan(WANTED, 100, float("inf"), lanes=3)
    dues = [one.due or 0.0 for one in open_loop.requests]

    assert (100, False) == (open_loop.lanes, open_loop.closed)
    assert sorted(dues) == dues and 10.0 < dues[-1] < 40.0
    assert (3, True, None) == (limited.lanes, limited.closed, limited.requests[0].due)


def test_a_trace_is_played_as_recorded() -> None:
    """Moments by speed, lengths as recorded up to the limits; seeds and classes go on as elsewhere."""
    found = replay(WANTED, ROWS, speed=2.0, longest=100)

    assert [0.0, 2.0, 3.0] == [one.due for one in found.requests]
    assert [10, 50, 1] == [one.sampling.max_tokens for one in found.requests]
    assert [round(tokens * WORDS_PER_TOKEN) for tokens in (20, 100, 8)] == [
        len(one.prompt.split()) for one in found.requests
    ]
    assert [("a", 7), ("b", 8), ("a", 9)] == [(one.service_class, one.sampling.seed) for one in found.requests]
    assert (3, False) == (found.lanes, found.closed)


def test_shared_blocks_are_shared_text() -> None:
    """Prompts with the same blocks in front begin alike for as long as those are, and differ behind them; without blocks
    they differ from the first word."""
    words = Words(("one two three four five six seven", "eight"))
    rows = [Row(0.0, 3 * BLOCK_TOKENS, 1, blocks) for blocks in ((1, 2), (1, 2), (1, 3), ())]
    texts = [words.prompt(number, row).split() for number, row in enumerate(rows)]
    block = round(BLOCK_TOKENS * WORDS_PER_TOKEN)

    assert texts[0][: 2 * block] == texts[1][: 2 * block] and texts[0] != texts[1]
    assert texts[0][:block] == texts[2][:block] and texts[0][block] != texts[2][block]
    assert texts[3][0] not in {text[0] for text in texts[:3]}
    assert {round(3 * BLOCK_TOKENS * WORDS_PER_TOKEN)} == {len(text) for text in texts}
