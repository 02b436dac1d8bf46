"""Load through the SDK against a server that counts: who is asked when, and what is recorded."""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from specfleet.bench.arrivals import poisson
from specfleet.bench.load import Load, Plan, Record, Request
from specfleet.bench.prompts import read_prompts
from specfleet.client import AsyncClient
from specfleet.core.errors import ConfigurationError, InternalError
from specfleet.core.types import SamplingParams
from support.generation import Counter, serving

TOKENS = SamplingParams(max_tokens=5)


def requests(count: int, dues: tuple[float, ...] | None = None) -> tuple[Request, ...]:
    return tuple(Request(f"prompt {number}", TOKENS, due=dues[number] if dues else None) for number in range(count))


async def run(plan: Plan, *counters: Counter, cancel_after: float | None = None) -> list[Record]:
    """The plan against one server per counter; cancelled like on Ctrl-C after so many seconds."""
    async with AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(serving(counter)) for counter in counters]
        clients = [await stack.enter_async_context(AsyncClient(address)) for address in addresses]
        load = Load(plan, clients)
        try:
            async with asyncio.timeout(cancel_after):
                await load.run()
        except TimeoutError:
            assert cancel_after is not None
    return load.records


def most_at_once(records: list[Record]) -> int:
    moments = sorted([(one.begun, 1) for one in records] + [(one.ended, -1) for one in records])
    return max(np.cumsum([change for _, change in moments]))


@pytest.mark.asyncio
async def test_closed_loop() -> None:
    """Three lanes carry ten requests, three at a time, each lane's one behind the other; every token is recorded."""
    records = await run(Plan(requests(10), lanes=3, closed=True), Counter(delay=0.002))

    assert {0, 1, 2} == {one.stream for one in records}
    assert (10, 3) == (len(records), most_at_once(records))
    for lane in range(3):
        mine = [one for one in records if one.stream == lane]
        assert all(before.ended <= after.begun for before, after in itertools.pairwise(mine))
    assert all(one.finished and one.tokens == 5 and one.policy == "fixed:4" for one in records)
    # The server's kinds are accepted, accepted, bonus, target, recovered, a token an event.
    assert [1, 1, 0, 0, 0] == [arrival.accepted for arrival in records[0].arrivals]
    assert all(one.begun < one.arrivals[0].at < one.arrivals[-1].at <= one.ended for one in records)


@pytest.mark.asyncio
async def test_servers_are_taken_in_turn() -> None:
    """Lane i belongs to server i modulo their number; in the open loop, request i."""
    counters = Counter("a"), Counter("b")
    await run(Plan(requests(6), lanes=6, closed=False), *counters)
    lanes = Counter("a"), Counter("b")
    await run(Plan(requests(8), lanes=2, closed=True), *lanes)

    assert {"prompt 0", "prompt 2", "prompt 4"} == {one.prompt for one in counters[0].requests}
    assert 8 == len(lanes[0].requests) + len(lanes[1].requests)
    assert lanes[0].requests and lanes[1].requests


@pytest.mark.asyncio
async def test_open_loop_keeps_its_moments() -> None:
    """Requests are sent when due, whether or not others are done, and each is a stream of its own."""
    dues = (0.0, 0.05, 0.1, 0.3)
    records = await run(Plan(requests(4, dues), lanes=4, closed=False), Counter(delay=0.03))

    assert dues == tuple(sorted(one.begun for one in records))
    assert {0, 1, 2, 3} == {one.stream for one in records}
    assert most_at_once(records) >= 2
    assert all(0.03 <= one.ttft < 0.25 for one in records)


@pytest.mark.asyncio
async def test_waiting_for_a_turn_counts() -> None:
    """Due at the same moment, but one at a time: the second one's first token is later by the first one's duration."""
    records = await run(Plan(requests(2, (0.0, 0.0)), lanes=1, closed=False), Counter(delay=0.02))

    assert records[1].ttft > records[0].e2e


@pytest.mark.asyncio
async def test_a_failure_ends_one_request() -> None:
    """It keeps its error and the tokens that came; the others go on."""
    records = await run(Plan(requests(3), lanes=1, closed=True), Counter(faults={3: InternalError("broken")}))

    assert [False, True, True] == [one.finished for one in records]
    assert (3, 5) == (records[0].tokens, records[1].tokens)
    assert "broken" in str(records[0].error) and records[1].error is None
    assert records[0].speculation.rounds == 0


@pytest.mark.asyncio
async def test_cancelled_keeps_what_was_measured() -> None:
    """What was under way is recorded as neither finished nor failed; what was not begun, not at all."""
    counter = Counter(faults={3: "hang"})
    records = await run(Plan(requests(5), lanes=2, closed=True), counter, cancel_after=1.0)

    cut = [one for one in records if not one.finished]
    assert [(3, None)] == [(one.tokens, one.error) for one in cut]
    assert 5 == len(records)


@pytest.mark.asyncio
async def test_classes_and_seeds_are_passed_on() -> None:
    """A request's class and sampling arrive as they were planned."""
    counter = Counter()
    plan = Plan((Request("x", SamplingParams(max_tokens=2, seed=9), "fast"),), lanes=1, closed=True)
    records = await run(plan, counter)

    assert ("fast", 9, 2) == (
        counter.requests[0].service_class,
        counter.requests[0].sampling.seed,
        counter.requests[0].sampling.max_tokens,
    )
    assert records[0].service_class == "fast"


# --- arrivals -------------------------------------------------------------------------------------------------------


def test_arrivals_are_poisson() -> None:
    """Gaps are exponential with mean 1/rate (Kolmogorov-Smirnov), counts per second have variance = mean."""
    moments = np.array(poisson(20.0, 20_000, seed=1))
    gaps = np.diff(moments, prepend=0.0)
    counts = np.bincount(moments.astype(int))[:-1]

    assert stats.kstest(gaps, "expon", args=(0, 1 / 20.0)).pvalue > 0.01
    assert 20.0 == pytest.approx(counts.mean(), rel=0.05)
    assert 20.0 == pytest.approx(counts.var(), rel=0.15)


def test_arrivals_are_their_seeds() -> None:
    """The same seed, the same moments; another one, others."""
    assert poisson(3.0, 10, 1) == poisson(3.0, 10, 1) != poisson(3.0, 10, 2)
    assert list(poisson(3.0, 10, 1)) == sorted(poisson(3.0, 10, 1))


# --- prompts --------------------------------------------------------------------------------------------------------


def written(folder: Path, *lines: str) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_prompts(tmp_path: Path) -> None:
    """ "prompt", or the first of "turns"; empty lines and other keys do not matter, line breaks in a prompt stay."""
    lines = json.dumps({"id": 1, "prompt": "a\u2028b\n"}, ensure_ascii=False), "", json.dumps({"turns": ["c", "d"]})

    assert ("a\u2028b\n", "c") == read_prompts(written(tmp_path, *lines))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 of .* is not JSON"),
        ('"text"', "line 2 of .* must be an object"),
        ("[]", "line 2 of .* must be an object"),
        ('{"text": "x", "id": 1}', 'line 2 of .* no "prompt" with text in it; it has text, id'),
        ('{"prompt": ""}', 'line 2 of .* no "prompt"'),
        ('{"prompt": 3}', 'line 2 of .* no "prompt"'),
        ('{"turns": []}', 'line 2 of .* no "prompt"'),
        ("{}", "it has nothing"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    """The line's number, what is wrong with it, what it should be."""
    with pytest.raises(ConfigurationError, match=message):
        read_prompts(written(tmp_path, '{"prompt": "fine"}', line))


def test_no_file_and_no_prompts(tmp_path: Path) -> None:
    """A file that is not there, is a folder, is not text, or is empty."""
    (tmp_path / "image").write_bytes(b"\xff\xd8\xff")
    for path, message in (
        (tmp_path / "nowhere", "cannot read .*No such file"),
        (tmp_path, "cannot read .*directory"),
        (tmp_path / "image", "is not text in UTF-8"),
        (written(tmp_path, ""), "holds no prompt"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            read_prompts(path)
