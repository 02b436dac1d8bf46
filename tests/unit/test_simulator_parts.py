"""Parts of the simulator by themselves: its clock, its pages, its bytes, its step times, its distributions over time."""

from __future__ import annotations

import asyncio
import math
import random
from pathlib import Path

import pytest

from scheduler.draft_time import DraftProfile
from simulator.clock import Stalled, VirtualLoop, run, sleep
from simulator.config import Availability, Tier
from simulator.counters import Histogram
from simulator.device import Drift, Presence
from simulator.engine import BatchShape, ModelledEngine
from simulator.links import Pipe, Way
from simulator.machine import CARDS, MODELS, Parallel, Roofline, load_profile, shipped
from simulator.sizes import FRAME, size
from simulator.speculator import ModelledSpeculator
from simulator.text import VOCABULARY, Truth, next_token, reference
from specfleet.core.errors import ConfigurationError
from specfleet.core.protocol import Draft, Verdict
from specfleet.core.step import StepItem
from specfleet.core.types import Grant, Mode, SamplingParams
from specfleet.wire.codec import verify_request_to_proto, verify_response_to_proto

GREEDY = SamplingParams(temperature=0.0)
NOWHERE = Path("nowhere")


# --- the clock ---------------------------------------------------------------------------------------------------------


def test_what_is_due_at_one_moment_runs_in_the_order_it_was_asked_for() -> None:
    async def main() -> list[int]:
        loop, order = asyncio.get_running_loop(), []
        for number in range(50):
            loop.call_at(1.0, order.append, number)
        await asyncio.sleep(1.0)
        return order

    assert list(range(50)) == run(main())


def test_an_hour_of_cancelled_timeouts_leaves_no_heap() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        for _ in range(20_000):
            async with asyncio.timeout(3600.0):
                await asyncio.sleep(0.001)
        return len(loop._timers)

    assert run(main()) < 10_000


def test_a_nap_ends_in_time_or_when_it_is_cancelled() -> None:
    """Cancelled, it ends then and is not heard of again; in time, others of its moment keep their order."""

    async def main() -> list[tuple[str, float]]:
        loop, seen = asyncio.get_running_loop(), []

        async def napping(name: str, seconds: float) -> None:
            try:
                await sleep(seconds)
                seen.append((name, loop.time()))
            except asyncio.CancelledError:
                seen.append((f"{name} cancelled", loop.time()))
                await sleep(1.0)
                seen.append((f"{name} afterwards", loop.time()))

        tasks = [asyncio.create_task(napping(*one)) for one in (("a", 2.0), ("b", 4.0), ("c", 2.0))]
        loop.call_later(3.0, tasks[1].cancel)
        await asyncio.gather(*tasks)
        await sleep(5.0)
        return seen

    assert [("a", 2.0), ("c", 2.0), ("b cancelled", 3.0), ("b afterwards", 4.0)] == run(main())


def test_waiting_for_nothing_is_said() -> None:
    with pytest.raises(Stalled):
        run(asyncio.Event().wait())


def test_a_timeout_ends_at_its_moment() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await asyncio.sleep(9.0)
        return asyncio.get_running_loop().time()

    assert 2.5 == run(main())


# --- texts -------------------------------------------------------------------------------------------------------------


def test_a_text_is_the_same_however_it_is_followed() -> None:
    prompt = [1, 2, 3]
    one_by_one = list(prompt)
    for _ in range(40):
        one_by_one.append(next_token(one_by_one))
    assert one_by_one[3:] == reference(prompt, 40) == Truth(prompt).between(3, 43)


# --- the engine --------------------------------------------------------------------------------------------------------


def item(sequence: int, tokens: list[int], draft: int = 0, sample: bool = True) -> StepItem:
    return StepItem(sequence, tokens, GREEDY, draft=draft, sample=sample)


def test_the_engine_accepts_what_is_right_and_corrects_the_rest() -> None:
    async def main() -> None:
        engine = ModelledEngine(lambda shape: 0.01)
        prompt = list(range(20))
        truth = reference(prompt, 4)
        engine.open(1, prompt)
        wrong = (truth[2] + 1) % VOCABULARY
        (result,) = await engine.step([item(1, [*prompt, truth[0], truth[1], wrong], draft=3)])
        assert (2, tuple(truth[:3])) == (result.accepted, result.tokens)
        (result,) = await engine.step([item(1, [truth[2]])])
        assert (truth[3],) == result.tokens
        assert engine.pages.used == 2
        engine.close(1)
        assert engine.pages.used == 0

    run(main())


def test_prompts_that_begin_alike_share_pages_until_their_room_is_needed() -> None:
    async def main() -> None:
        engine = ModelledEngine(lambda shape: 0.01, total_pages=8, prefix_cache=True)
        prompt = list(range(48))
        assert engine.open(1, [*prompt, 1]) == 0
        await engine.step([item(1, [*prompt, 1])])
        assert engine.open(2, [*prompt, 2]) == 48
        await engine.step([item(2, [2])])
        assert engine.pages.used == 5  # three shared, and one of each
        engine.close(1)
        engine.close(2)
        assert (0, 8) == (engine.pages.used, engine.free_pages)
        assert engine.open(3, [*prompt, 3]) == 48
        engine.close(3)
        other = [500 + token for token in range(120)]
        engine.open(4, other)
        await engine.step([item(4, other)])
        assert engine.pages.evictions == 3
        engine.close(4)
        assert engine.open(5, [*prompt, 3]) == 0

    run(main())


# --- step times --------------------------------------------------------------------------------------------------------


def test_profiles_that_ship_have_sources() -> None:
    assert "tiny-pair-cpu" in shipped()
    for name in shipped():
        profile = load_profile(name, NOWHERE)
        assert profile.source
        assert 0.0 < profile.seconds(BatchShape(8, 800, 8 * 108, 8)) < 1.0


def test_turbospecs_fit_is_what_its_code_says() -> None:
    """ms = 6.24e-5 cached + 6.40e-2 tokens - 3.97e-2 batch + 18.345, at batch 32, 1k context and 4 drafted tokens."""
    milliseconds = 6.24e-5 * 32_000 + 6.40e-2 * 160 - 3.97e-2 * 32 + 18.345
    found = load_profile("llama-70b-tp4-h100", NOWHERE).seconds(BatchShape(160, 32_000, 0, 32))
    assert milliseconds / 1e3 == pytest.approx(found)


def test_a_roofline_is_bound_by_memory_first_and_by_compute_later() -> None:
    roof = Roofline(MODELS["qwen3-8b"], CARDS["a100-80gb"])
    one, many, chunk = (roof.seconds(BatchShape(tokens, 0)) for tokens in (1, 64, 4096))
    weights = 2 * 8.2e9 / (2.039e12 * 0.7)
    assert weights + 2e-3 == pytest.approx(one, rel=0.01)
    assert many < 1.05 * one
    assert 2e-3 + 2 * 8.2e9 * 4096 / (312e12 * 0.7) == pytest.approx(chunk, rel=0.01)


def test_what_a_scheduler_is_told_of_a_roofline_is_near_it() -> None:
    roof = Roofline(MODELS["qwen3-8b"], CARDS["a100-80gb"])
    told = roof.told()
    for tokens, cached in ((8, 8_000), (64, 32_000), (256, 100_000)):
        predicted = told.fixed + told.per_token * tokens + told.per_cached * cached
        assert roof.seconds(BatchShape(tokens, cached)) == pytest.approx(predicted, rel=0.25)


def test_more_cards_are_faster_and_not_for_free() -> None:
    one = Roofline(MODELS["qwen3-32b"], CARDS["a100-80gb"])
    four = Roofline(MODELS["qwen3-32b"], CARDS["a100-80gb"], cards=4)
    shape = BatchShape(32, 32_000)
    assert one.seconds(shape) / 4 < four.seconds(shape) < one.seconds(shape)
    assert one.seconds(shape) / 2 < Parallel(one, 2, 0.8).seconds(shape) < one.seconds(shape)


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="did you mean tiny-pair-cpu"):
        load_profile("tiny-pair-cp", NOWHERE)


# --- the network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 4, 50])
@pytest.mark.parametrize("position", [1, 127, 128, 20_000])
def test_bytes_are_those_of_the_wire(count: int, position: int) -> None:
    """Against the encoder, with ids of a large vocabulary."""
    ids = tuple(range(100_000, 100_000 + count))
    draft = Draft(position=position, tokens=ids, confirmed=position, last=True, draft_seconds=0.5)
    assert verify_request_to_proto(draft).ByteSize() + FRAME == size(draft)
    verdict = Verdict(
        position=position,
        tokens=(*ids, 100_000),
        drafted=count,
        accepted=count,
        grant=Grant(Mode.ROUND, 4),
        mode=Mode.ROUND,
    )
    assert verify_response_to_proto(verdict).ByteSize() + FRAME == size(verdict)


def test_messages_keep_their_order_and_share_the_bandwidth() -> None:
    """Four messages of 125 bytes over 1 kbit/s: one a second; jitter never lets one overtake another."""

    async def main() -> list[tuple[int, float]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        pipe = Pipe(Way(0.5, 0.2, 0.001, random.Random(3)), loop)
        for number in range(4):
            pipe.put(number, 125)
        return [(await pipe.get(), loop.time()) for _ in range(4)]

    found = run(main())
    assert [0, 1, 2, 3] == [number for number, _ in found]
    assert all(time >= 1.5 + number for number, time in found)
    assert found[-1][1] < 7.0


# --- over time ---------------------------------------------------------------------------------------------------------


def test_acceptance_drifts_between_its_points() -> None:
    drift = Drift(Tier(count=1, acceptance=0.8, drift=((10.0, 0.0), (20.0, -0.4), (30.0, 0.9))), random.Random(0))  # type: ignore[arg-type]
    assert [0.8, 0.8, 0.6, 0.4, 1.0, 1.0] == pytest.approx([drift(now) for now in (0.0, 10.0, 15.0, 20.0, 29.9, 99.0)])


def test_users_are_there_in_their_windows() -> None:
    windows = Presence(Availability(windows=((1.0, 2.0), (5.0, 6.0))), random.Random(0))
    assert [1.0, 0.0, 3.0, None] == [windows.wait(now) for now in (0.0, 1.5, 2.0, 6.0)]
    cycle = Presence(Availability(on=3.0, off=1.0), random.Random(0))
    there = sum(cycle.wait(now / 100.0) == 0.0 for now in range(40_000)) / 40_000
    assert 0.75 == pytest.approx(there, abs=0.01)


def test_a_histogram_knows_quantiles_within_one_per_cent() -> None:
    rng = random.Random(2)
    values = sorted(rng.lognormvariate(-4.0, 1.0) for _ in range(5_000))
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    for share in (0.5, 0.95, 0.99):
        exact = values[math.ceil(share * len(values)) - 1]
        assert exact == pytest.approx(histogram.quantile(share), rel=0.011)


def test_texts_drafted_together_take_what_the_profile_says() -> None:
    """Four at once, 10 ms a token each, where one takes 4 ms: in batches after 20 ms, one after another after 32 ms."""

    async def main(together: DraftProfile | None) -> float:
        speculator = ModelledSpeculator(lambda now: 1.0, 0.004, random.Random(0), together=together)
        await asyncio.gather(*(speculator.start(GREEDY).draft([number], 2) for number in range(4)))
        return asyncio.get_running_loop().time()

    assert 0.02 == pytest.approx(run(main(DraftProfile((1, 4), (0.01, 0.01)))))
    assert 0.032 == pytest.approx(run(main(None)))
