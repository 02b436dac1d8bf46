"""Half-open connections: a peer that is gone without a word is found by both sides, and a quiet one is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from specfleet.core.errors import ConnectionError_
from specfleet.core.protocol import Open, Opened, ServerStream
from specfleet.core.types import LOCAL, Load, ModelInfo, SamplingParams
from specfleet.wire import channel, server
from specfleet.wire.server import Server
from specfleet.wire.verification import GrpcVerifierConnection

MODEL = ModelInfo("m", 3, b"digest", 100, ())
OPENING = Open(prompt=(1,), sampling=SamplingParams(max_tokens=1))
PINGS = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
ALLOWED = "grpc.http2.min_recv_ping_interval_without_data_ms"


@dataclass
class Quiet:
    """Lets everybody in and says nothing more."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, stream: ServerStream, identity: str) -> None:
        await stream.receive()
        await stream.send(Opened(grant=LOCAL, model=MODEL, prompt_tokens=1, cached_tokens=0, verifier="quiet"))
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    def model(self) -> ModelInfo:
        return MODEL

    def load(self) -> Load:
        return Load(0, 0, 0, 0.0)

    def tokenizer_files(self) -> Mapping[str, bytes]:
        return {}


class Wire:
    """A TCP proxy that can be cut: both ends stay connected, and nothing arrives any more."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        self._whole.clear()

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        self._writers += (writer, far_writer)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._tasks.add(asyncio.create_task(self._pump(source, sink)))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._whole.wait()
            sink.write(data)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def wired(backend: Quiet) -> AsyncIterator[tuple[Wire, GrpcVerifierConnection]]:
    """A verifier and a connection to it over a wire that can be cut."""
    serving = Server()
    serving.add_verification(backend)
    wire = Wire(serving.bind("127.0.0.1:0"))
    await serving.start()
    listener = await asyncio.start_server(wire.join, "127.0.0.1", 0)
    connection = GrpcVerifierConnection(f"127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    try:
        yield wire, connection
    finally:
        await connection.close()
        await serving.stop(0.0)
        listener.close()
        await wire.close()


def pinging(monkeypatch: pytest.MonkeyPatch, *, client: int, server_: int, allowed: int) -> None:
    """Pings every so many milliseconds, answers within as many, in place of the real ones' seconds."""

    def changed(options: tuple[tuple[str, int], ...], every: int) -> tuple[tuple[str, int], ...]:
        new = {**dict(options), **dict.fromkeys(PINGS, every)}
        return tuple({**new, ALLOWED: allowed}.items() if ALLOWED in new else new.items())

    monkeypatch.setattr(server, "SERVER_OPTIONS", changed(server.SERVER_OPTIONS, server_))
    monkeypatch.setattr(channel, "OPTIONS", changed(channel.OPTIONS, client))


@pytest.mark.asyncio
async def test_a_drafter_notices_that_its_verifier_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream over a connection that nothing comes through any more ends with a ConnectionError_."""
    pinging(monkeypatch, client=500, server_=60_000, allowed=100)
    async with wired(Quiet()) as (wire, connection):
        stream = await connection.verify()
        await stream.send(OPENING)
        assert isinstance(await stream.receive(), Opened)
        wire.cut()
        async with asyncio.timeout(10.0):
            with pytest.raises(ConnectionError_):
                await stream.receive()


@pytest.mark.asyncio
async def test_a_verifier_notices_that_its_drafter_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream is cancelled, and what it held is free, though the drafter never said goodbye."""
    pinging(monkeypatch, client=60_000, server_=500, allowed=100)
    backend = Quiet()
    async with wired(backend) as (wire, connection):
        stream = await connection.verify()
        await stream.send(OPENING)
        assert isinstance(await stream.receive(), Opened)
        wire.cut()
        async with asyncio.timeout(10.0):
            await backend.ended.wait()


@pytest.mark.asyncio
async def test_a_quiet_stream_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings at half the rate that servers allow, which is what the real settings come to, are no offence: a stream that says
    nothing for twenty of them goes on, and so do new ones."""
    assert 2 * dict(server.SERVER_OPTIONS)[ALLOWED] <= dict(channel.OPTIONS)["grpc.keepalive_time_ms"]
    pinging(monkeypatch, client=100, server_=100, allowed=50)
    backend = Quiet()
    async with wired(backend) as (_, connection):
        stream = await connection.verify()
        await stream.send(OPENING)
        assert isinstance(await stream.receive(), Opened)
        await asyncio.sleep(2.0)
        assert not backend.ended.is_set()
        assert MODEL.name == (await connection.model()).name
