"""A machine that several daemons share: what runs at the same time runs slower, messages cost their daemons time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from scheduler.draft_time import DraftProfile
from simulator import clock
from simulator.baselines import policy
from simulator.clock import wake
from simulator.document import checked
from simulator.host import EventLoop, Host
from simulator.play import Played, play
from simulator.together import DraftEngine


async def work(host: Host, seconds: float, threads: float) -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    host.begin(seconds, threads, lambda: wake(done))
    await done


def ends(processors: float, *works: tuple[float, float, float]) -> list[float]:
    """When pieces of work are done that begin at `at`, would take `seconds` alone, and use `threads`."""

    async def one(host: Host, at: float, seconds: float, threads: float) -> float:
        await asyncio.sleep(at)
        await work(host, seconds, threads)
        return asyncio.get_running_loop().time()

    async def everybody() -> list[float]:
        host = Host(processors)
        return list(await asyncio.gather(*(one(host, *work) for work in works)))

    return clock.run(everybody())


@pytest.mark.parametrize(
    ("processors", "works", "expected"),
    [
        (2, [(0.0, 1.0, 2.0)], [1.0]),
        (2, [(0.0, 1.0, 1.0), (0.0, 1.0, 1.0)], [1.0, 1.0]),
        (2, [(0.0, 1.0, 2.0), (0.0, 1.0, 2.0)], [2.0, 2.0]),
        (1, [(0.0, 1.0, 1.0), (0.5, 1.0, 1.0)], [1.5, 2.0]),
        (2, [(0.0, 1.0, 2.0), (0.0, 0.5, 1.0)], [1.25, 0.75]),
        (1, [(0.0, 1.0, 1.0), (3.0, 1.0, 1.0)], [1.0, 4.0]),
    ],
)
def test_threads_share_processors(
    processors: float, works: list[tuple[float, float, float]], expected: list[float]
) -> None:
    """More threads than processors: all go on at the same rate, and faster again once one of them is done."""
    assert pytest.approx(expected) == ends(processors, *works)


def test_an_engine_that_nobody_waits_for_goes_on() -> None:
    """A step is not given up with the session that asked for it, and slows others to its end."""

    async def given_up() -> float:
        host = Host(1)
        first = asyncio.create_task(EventLoop(host, 0.0).called(1.0, 1.0))
        await asyncio.sleep(0.5)
        first.cancel()
        await EventLoop(host, 0.0).called(1.0, 1.0)
        return asyncio.get_running_loop().time()

    assert pytest.approx(2.0) == clock.run(given_up())


async def told(messages: int, seconds: float = 0.001) -> list[tuple[str, float]]:
    """When a daemon's engine, asked for 10 ms, and so many messages that came just after that, are done."""
    loop, seen, now = EventLoop(Host(2), seconds), [], asyncio.get_running_loop().time

    def note(name: str) -> None:
        seen.append((name, round(now(), 6)))

    loop.call(0.01, 1.0, lambda: note("engine"))
    for _ in range(messages):
        loop.handle(note, "message")
    await asyncio.sleep(1.0)
    return seen


def test_the_engine_begins_when_the_event_loop_rests() -> None:
    """Asked in 1 ms, three messages in 3 ms, 10 ms of work beside which nothing happens, the result taken in in 1 ms."""
    assert [("engine", 0.012)] == clock.run(told(0))
    assert [("message", 0.002), ("message", 0.003), ("message", 0.004), ("engine", 0.015)] == clock.run(told(3))


def test_the_engine_does_not_wait_for_ever() -> None:
    """A loop that never rests has to let it begin after SWITCH_SECONDS; its result waits for its turn, behind 40 messages, and
    not for 10 ms more."""
    seen = clock.run(told(40))
    assert 41 == len(seen)
    assert ("engine", 0.042) == seen[-1]


def drafts(*asked: tuple[float, int], give_up: int | None = None) -> list[tuple[float, int]]:
    """When drafts of so many tokens, asked for at those moments of one engine, end, and how many tokens they got. A step takes
    10 ms, and 1 ms for each text; messages nothing."""

    async def one(engine: DraftEngine, number: int, at: float, tokens: int) -> tuple[float, int]:
        await asyncio.sleep(at)
        job = engine.draft(tokens)
        if number == give_up:
            job.done.cancel()
        await asyncio.wait([job.done])
        return round(asyncio.get_running_loop().time(), 6), job.made

    async def everybody() -> list[tuple[float, int]]:
        profile = DraftProfile((1, 2, 4), (0.011, 0.012, 0.014))
        engine = DraftEngine(profile, EventLoop(Host(1), 0.0), 1.0)
        return list(await asyncio.gather(*(one(engine, number, *ask) for number, ask in enumerate(asked))))

    return clock.run(everybody())


def test_drafts_are_made_together_call_by_call() -> None:
    """Whoever asks while the engine computes is in the next call, which ends when the first of them has enough; at most eight
    steps a call."""
    assert [(0.044, 4)] == drafts((0.0, 4))
    # The second and third: two steps together, then the third alone.
    assert [(0.011, 1), (0.035, 2), (0.057, 4)] == drafts((0.0, 1), (0.001, 2), (0.002, 4))
    # Whoever comes waits for eight steps of the ten, not for all; then two together, then two alone.
    assert [(0.112, 10), (0.134, 4)] == drafts((0.0, 10), (0.001, 4))
    # What was given up is not in the next call.
    assert [(0.011, 1), (0.001, 0), (0.033, 2)] == drafts((0.0, 1), (0.001, 3), (0.002, 2), give_up=1)


def test_guesses_ahead_are_asked_for_as_many_as_gather() -> None:
    """One while the engine's pace is unknown, then those that it makes within 3 ms."""

    async def strides() -> tuple[int, int]:
        engine = DraftEngine(DraftProfile((1,), (0.0009,)), EventLoop(Host(1), 0.0), 1.0)
        before = engine.stride
        await engine.draft(2).done
        return before, engine.stride

    assert (1, 3) == clock.run(strides())


def test_a_daemon_handles_one_message_after_another() -> None:
    """In their order, however many processors there are; two daemons do so side by side."""

    async def handled() -> list[tuple[str, float]]:
        host, seen, now = Host(4), [], asyncio.get_running_loop().time
        for daemon, names in ((EventLoop(host, 0.1), "abc"), (EventLoop(host, 0.1), "x")):
            for name in names:
                daemon.handle(lambda name: seen.append((name, round(now(), 6))), name)
        await asyncio.sleep(1.0)
        return seen

    assert [("a", 0.1), ("x", 0.1), ("b", 0.2), ("c", 0.3)] == clock.run(handled())


def fleet(hosts: dict[str, Any], **where: Any) -> Played:
    document = {
        "duration": 5,
        "hosts": hosts,
        "tiers": {"edge": {"count": 1, "streams": 4, "together": {1: 0.002, 4: 0.004}, **where}},
        "verifiers": {"gpu": {"profile": {"fixed": 0.01, "per_token": 0.0003}, **where}},
        "workload": {"closed_loop": {"requests": 12}, "output_tokens": 32},
    }
    return play(checked(document, Path("desk.yaml")), policy("stream"), 0)


def test_a_fleet_on_one_machine_is_slower_than_on_two() -> None:
    """Engines of two threads take processors from each other, engines of one do not; messages take more of them. All requests
    get their tokens."""
    desk = {"desk": {"processors": 2}}
    single = fleet(desk, host="desk", threads=1)
    double = fleet(desk, host="desk", threads=2)
    talking = fleet({"desk": {"processors": 2, "message_seconds": 0.0005}}, host="desk", threads=2)
    played = (fleet({}), single, double, talking)
    assert [12] * 4 == [len(one.rows) for one in played]
    assert [12 * 32] * 4 == [one.total.tokens for one in played]
    apart_s, single_s, double_s, talking_s = (sum(row.e2e for row in one.rows) for one in played)
    assert single_s < double_s < talking_s
    # Apart, four drafts that begin at once are not one batch.
    assert pytest.approx(apart_s, rel=0.1) == single_s


def test_drafts_on_a_shared_machine_are_all_counted() -> None:
    """Of drafts given up in the middle, too: what was drafted is what became of it (asserted for every request), and the same
    seed plays the same."""
    first, second = (fleet({"desk": {"processors": 2}}, host="desk") for _ in range(2))
    drafted = sum(row.drafted for row in first.rows)
    assert 0 < first.total.accepted < drafted
    assert [row.e2e for row in first.rows] == [row.e2e for row in second.rows]
