"""SIGTERM to real daemons: what runs finishes or is told to move, readiness is off at once, and the exit code is 0."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from specfleet import AsyncClient, AsyncStream, Client, SamplingParams, Unavailable
from specfleet.client.connection import Connection
from specfleet.core.generation import GenerationRequest
from specfleet.wire import generation
from specfleet.wire.channel import open_channel
from specfleet.wire.credentials import Credentials
from support.daemons import READY_SECONDS, Daemon, running, start_drafter, start_verifier
from support.pair import TARGET

LONG = SamplingParams(max_tokens=1900, ignore_eos=True, temperature=0.0)
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
DRAIN_SECONDS, LONG_DRAIN_SECONDS = 1.0, 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def either(kind: str, drain: float) -> Iterator[Daemon]:
    """A verifier, or a drafter in front of one, that has `drain` seconds."""
    arguments = ("--drain-seconds", str(drain))
    if kind == "verifier":
        with running(start_verifier("--speculation", "none", *arguments)) as verifier:
            yield verifier
    else:
        with running(start_verifier()) as verifier, running(start_drafter(verifier, *arguments, model="ngram")) as one:
            yield one


async def begun(client: AsyncClient) -> AsyncStream:
    """A stream whose first token has come."""
    stream = client.stream("The old house", LONG)
    await anext(stream)
    return stream


async def ended(daemon: Daemon) -> int:
    return await asyncio.to_thread(daemon.process.wait, 30.0)


@pytest.mark.parametrize("kind", ["verifier", "drafter"])
def test_what_takes_too_long_is_told_to_move(kind: str) -> None:
    """After --drain-seconds the rest end with UNAVAILABLE, which callers take elsewhere, and the exit code is 0. Whoever only
    watches its health does not hold it up, and hears at once that it is not ready."""

    async def main(daemon: Daemon) -> None:
        connection = Connection(daemon.address, Credentials())
        async with open_channel(daemon.address) as channel:
            call = await connection.generate(GenerationRequest(prompt="A", sampling=LONG), connect_within=5, within=60)
            await call.next()
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=generation.SERVICE))
            assert health_pb2.HealthCheckResponse.SERVING == (await watch.read()).status
            start = time.monotonic()
            daemon.process.terminate()
            assert NOT_SERVING == (await watch.read()).status
            assert time.monotonic() - start < DRAIN_SECONDS
            with pytest.raises(Unavailable, match="this server is stopping"):
                while True:
                    await call.next()
            waited = time.monotonic() - start
            assert 0.9 * DRAIN_SECONDS < waited < 4.0 * DRAIN_SECONDS, "the text would take longer than that"
            assert 0 == await ended(daemon)
        await connection.close()

    with either(kind, DRAIN_SECONDS) as daemon:
        asyncio.run(main(daemon))


@pytest.mark.parametrize("kind", ["verifier", "drafter"])
def test_an_idle_daemon_stops_at_once(kind: str) -> None:
    """With nothing running nobody waits, however long the drain may be; health watchers and open connections included."""

    async def main(daemon: Daemon) -> None:
        async with AsyncClient(daemon.address) as client, open_channel(daemon.address) as channel:
            await client.generate("x", max_tokens=1)
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            await watch.read()
            start = time.monotonic()
            daemon.process.terminate()
            assert 0 == await ended(daemon)
            assert time.monotonic() - start < LONG_DRAIN_SECONDS / 4.0

    with either(kind, LONG_DRAIN_SECONDS) as daemon:
        asyncio.run(main(daemon))


@contextmanager
def stubborn(start: Callable[[], Daemon]) -> Iterator[Daemon]:
    """A daemon that does not end with exit code 0."""
    daemon = start()
    try:
        daemon.wait_ready(90.0)
        yield daemon
    finally:
        daemon.stop(5.0)


def test_a_second_signal_ends_it_at_once() -> None:
    """Whoever cannot wait says so again: no more draining, exit code 1."""

    async def main(daemon: Daemon) -> None:
        async with AsyncClient(daemon.address, resume_timeout=0.0, retries=0) as client:
            await begun(client)
            daemon.process.terminate()
            await asyncio.sleep(0.3)
            assert daemon.process.poll() is None
            start = time.monotonic()
            daemon.process.terminate()
            assert 1 == await ended(daemon)
            assert time.monotonic() - start < LONG_DRAIN_SECONDS / 4.0

    with stubborn(
        lambda: start_verifier("--speculation", "none", "--drain-seconds", str(LONG_DRAIN_SECONDS))
    ) as daemon:
        asyncio.run(main(daemon))


def test_a_full_disk_under_its_output_stops_nothing() -> None:
    """Neither the configuration, nor the ready line, nor the log can be written: it serves, and stops with exit code 0."""
    address = f"127.0.0.1:{free_port()}"
    arguments = ("verifier", "--model", str(TARGET), "--listen", address, "--metrics", "", "--log-level", "debug")
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "specfleet.cli.main", *arguments], stdin=subprocess.DEVNULL, stdout=full, stderr=full
        )
        try:
            with Client(address, connect_timeout=READY_SECONDS, timeout=READY_SECONDS) as client:
                for _ in range(200):
                    if client.health()[0].ready:
                        break
                    time.sleep(0.5)
                assert 4 == len(client.generate("x", max_tokens=4, ignore_eos=True).token_ids)
            process.terminate()
            assert 0 == process.wait(30)
        finally:
            process.kill()
            process.wait()
