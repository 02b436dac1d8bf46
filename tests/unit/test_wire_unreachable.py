"""A server that cannot be talked to: one sentence that names it, what is wrong, and the way out. Real sockets, real TLS."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from specfleet import AsyncClient, ConnectionError_, ModelMismatch, Tls
from specfleet.wire.server import ANYBODY, Server
from specfleet.wire.tls import ServerCertificate
from specfleet.wire.unreachable import why
from specfleet.wire.verification import GrpcVerifierConnection
from support.generation import Counter, serving
from support.trust import Certificates


async def trouble(address: str, **credentials: Any) -> str:
    async with AsyncClient(address, retries=0, connect_timeout=5.0, insecure=True, **credentials) as client:
        with pytest.raises(ConnectionError_) as caught:
            await client.generate("x", max_tokens=1)
    return str(caught.value)


@asynccontextmanager
async def with_tls(certificates: Certificates, *hosts: str, clients: bool = False) -> AsyncIterator[str]:
    """A server with a certificate for `hosts`, that asks callers for one, too."""
    server = Server((), ANYBODY, ServerCertificate(*certificates.server(*hosts), certificates.ca if clients else None))
    server.add_generation(Counter())
    address = server.bind("127.0.0.1:0")
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0.0)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "ours")


@pytest.mark.asyncio
async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        expected = (
            f"cannot reach {address}: connection refused at {address}; is it running there, and is the address right?"
        )
        assert expected == await trouble(address)


@pytest.mark.asyncio
async def test_a_name_that_nobody_has() -> None:
    said = await trouble("nobody.invalid:7700")
    assert said.startswith("cannot reach nobody.invalid:7700: ") and said.endswith("is the address right?")


@pytest.mark.asyncio
async def test_tls_with_a_server_that_has_none(certificates: Certificates) -> None:
    async with serving(Counter()) as address:
        assert "it does not speak TLS; leave TLS out here" in await trouble(address, tls=certificates.tls())


@pytest.mark.asyncio
async def test_no_tls_with_a_server_that_has_it(certificates: Certificates) -> None:
    async with with_tls(certificates) as address:
        assert "a server with TLS does that to who comes without" in await trouble(address)


@pytest.mark.asyncio
async def test_no_certificate_where_one_is_asked_for(certificates: Certificates) -> None:
    async with with_tls(certificates, clients=True) as address:
        assert "the client certificate that it asks for" in await trouble(address, tls=certificates.tls())


@pytest.mark.asyncio
async def test_another_authority(certificates: Certificates, tmp_path: Path) -> None:
    other = Certificates(tmp_path / "theirs").tls()
    async with with_tls(certificates) as address:
        for tls in (other, Tls()):
            assert "its certificate is not from an authority that is trusted here" in await trouble(address, tls=tls)


@pytest.mark.asyncio
async def test_a_certificate_for_another_name(certificates: Certificates) -> None:
    async with with_tls(certificates, "gpu-1") as address:
        assert "its certificate is for other names" in await trouble(address, tls=certificates.tls())


@pytest.mark.asyncio
async def test_a_port_that_speaks_something_else() -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        assert "what answers there does not speak gRPC" in await trouble(f"{host}:{port}")


@pytest.mark.asyncio
async def test_a_drafter_is_no_verifier() -> None:
    """Asked for what it does not serve it says which port is for what."""
    async with serving(Counter()) as address:
        connection = GrpcVerifierConnection(address)
        with pytest.raises(ModelMismatch, match=rf"{address} is no server of that kind: .* verifiers \(7600\)"):
            await connection.model()
        await connection.close()


def test_what_grpc_may_say_one_day_is_passed_on() -> None:
    """Nothing is lost where none of the known causes fits."""
    head = "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5B::1%5D:7: "
    assert "No route to host; is it running there, and is the address right?" == why(f"{head}No route to host")
    assert why(f"{head}Connection refused").startswith("connection refused at [::1]:7, the last address tried; ")
    assert "something else; is it running there, and is the address right?" == why("something else")
