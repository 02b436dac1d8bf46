"""A machine that several daemons share: what runs at the same time runs slower, messages cost their daemons time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from simulator import clock
from simulator.baselines import policy
from simulator.document import checked
from simulator.host import EventLoop, Host, Threads
from simulator.play import Played, play


def ends(processors: float, *works: tuple[float, float, float]) -> list[float]:
    """When pieces of work are done that begin at `at`, would take `seconds` alone, and use `threads`."""

    async def one(host: Host, at: float, seconds: float, threads: float) -> float:
        await asyncio.sleep(at)
        await host.work(seconds, Threads(threads))
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


def test_work_that_nobody_waits_for_goes_on() -> None:
    """An engine's step is not given up with the session that asked for it, and slows others to its end."""

    async def given_up() -> float:
        host = Host(1)
        first = asyncio.create_task(host.work(1.0, Threads(1.0)))
        await asyncio.sleep(0.5)
        first.cancel()
        await host.work(1.0, Threads(1.0))
        return asyncio.get_running_loop().time()

    assert pytest.approx(2.0) == clock.run(given_up())


def test_what_an_engine_does_together_shares_its_threads() -> None:
    """Three drafts of one batch want no more processors than one of them."""

    async def drafted() -> float:
        host, engine = Host(2), Threads(2.0)
        await asyncio.gather(*(host.work(1.0, engine) for _ in range(3)))
        return asyncio.get_running_loop().time()

    assert pytest.approx(1.0) == clock.run(drafted())


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
    """Drafting ahead takes processors from the verifier; messages take more of them. All requests get their tokens."""
    apart = fleet({})
    beside = fleet({"desk": {"processors": 2}}, host="desk", threads=2)
    talking = fleet({"desk": {"processors": 2, "message_seconds": 0.0005}}, host="desk", threads=2)
    assert [12, 12, 12] == [len(one.rows) for one in (apart, beside, talking)]
    assert [12 * 32] * 3 == [one.total.tokens for one in (apart, beside, talking)]
    apart_s, beside_s, talking_s = (sum(row.e2e for row in one.rows) for one in (apart, beside, talking))
    assert apart_s < beside_s < talking_s
