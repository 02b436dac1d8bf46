"""A partition between drafter and verifier, in network namespaces: the verifier lives in one of its own, behind a virtual
cable that is unplugged and plugged in again. Nothing is closed or reset: packets just do not arrive.

    drafter, SDK  10.231.77.2 ──── veth ────  10.231.77.1  verifier
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from specfleet import AsyncClient, SamplingParams
from support.daemons import ANY_PORT, Daemon, running, wait_until_empty
from support.pair import DRAFT, TARGET

SOAK = os.environ.get("SPECFLEET_SOAK") == "1"
STREAMS = 32 if SOAK else 8
TOKENS, MIDWAY = 240, 20
"""Of each stream, and where the first of them is when the cable is unplugged: on a quick machine the rest takes a second."""
HERE, THERE = "10.231.77.2", "10.231.77.1"
NAMESPACE = f"specfleet-{os.getpid()}"
OUR_END, ITS_END = f"sfa{os.getpid()}"[:15], f"sfb{os.getpid()}"[:15]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def cable() -> Iterator[None]:
    """A namespace and the cable to it; skipped where that is not allowed."""
    if shutil.which("ip") is None:
        pytest.skip("the command ip is not installed")
    try:
        ip("netns", "add", NAMESPACE)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
    try:
        ip("link", "add", OUR_END, "type", "veth", "peer", "name", ITS_END)
        ip("link", "set", ITS_END, "netns", NAMESPACE)
        ip("addr", "add", f"{HERE}/30", "dev", OUR_END)
        ip("link", "set", OUR_END, "up")
        ip("-n", NAMESPACE, "addr", "add", f"{THERE}/30", "dev", ITS_END)
        ip("-n", NAMESPACE, "link", "set", "lo", "up")
        plug(True)
    except subprocess.CalledProcessError as error:
        ip("netns", "del", NAMESPACE)
        pytest.skip(f"virtual network devices are not allowed here: {error.stderr.strip()}")
    yield
    ip("netns", "del", NAMESPACE)


def plug(whole: bool) -> None:
    ip("-n", NAMESPACE, "link", "set", ITS_END, "up" if whole else "down")


@dataclass
class Fleet:
    verifier: Daemon
    drafter: Daemon


@pytest.fixture(scope="module")
def fleet(cable: None) -> Iterator[Fleet]:
    listen = ("--listen", f"{THERE}:0", "--metrics", f"{THERE}:0", "--insecure")
    inside = ("ip", "netns", "exec", NAMESPACE)
    with running(
        Daemon("verifier", "--model", str(TARGET), "--speculation", "fixed:4", *listen, prefix=inside)
    ) as verifier:
        where = (
            "--verifier",
            verifier.address,
            "--insecure",
            "--listen",
            ANY_PORT,
            "--http",
            ANY_PORT,
            "--metrics",
            ANY_PORT,
        )
        with running(Daemon("drafter", "--model", str(DRAFT), *where)) as drafter:
            yield Fleet(verifier, drafter)


def sampling(number: int) -> SamplingParams:
    """Greedy and seeded in turns."""
    if number % 2:
        return SamplingParams(max_tokens=TOKENS, temperature=0.8, seed=number, ignore_eos=True)
    return SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)


async def texts(client: AsyncClient, midway: asyncio.Event) -> list[tuple[int, ...]]:
    """Sets `midway` once it is."""

    async def one(number: int) -> tuple[int, ...]:
        async with client.stream(f"{number} old houses", sampling(number)) as stream:
            async for _ in stream:
                if len(stream.token_ids) >= MIDWAY:
                    midway.set()
            return tuple(stream.token_ids)

    return await asyncio.gather(*map(one, range(STREAMS)))


@pytest.mark.parametrize("seconds", [5.0, *([25.0] if SOAK else [])])
@pytest.mark.timeout(900)
def test_a_partition_costs_time_and_nothing_else(fleet: Fleet, seconds: float) -> None:
    """Unplugged midway, and plugged in again: all streams complete with the ids of the undisturbed run. (5 s are sat out;
    longer than keepalive waits, generations are opened again.)"""

    async def main() -> None:
        async with AsyncClient(fleet.drafter.address, timeout=300) as client:
            midway = asyncio.Event()
            undisturbed = await texts(client, midway)
            midway.clear()
            running = asyncio.create_task(texts(client, midway))
            await asyncio.wait({running, asyncio.create_task(midway.wait())}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.to_thread(plug, False)
            assert not running.done(), "the streams were over before the partition began"
            await asyncio.sleep(seconds)
            assert not running.done()
            await asyncio.to_thread(plug, True)
            assert undisturbed == await running

    try:
        asyncio.run(main())
    finally:
        plug(True)
    wait_until_empty(fleet.verifier, 30.0)
