"""The HTTP server itself, around a Generator that counts: statuses, identities, limits of time and size, drain."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from prometheus_client import CollectorRegistry

from drafter.config import DrafterConfig
from specfleet.core import errors
from specfleet.core.errors import ConfigurationError, InternalError, Overloaded, SpecfleetError
from specfleet.core.generation import Event, GenerationRequest, Tokens
from specfleet.http import connection, exchange, http_server
from specfleet.http.errors import body_of, headers_of, status_of
from specfleet.http.server import HttpServer
from specfleet.wire.auth import Guard, TokenFile, caller
from specfleet.wire.channel import MAX_MESSAGE_BYTES
from specfleet.wire.status import TABLE
from specfleet.wire.tls import ServerCertificate
from support.generation import Counter, text_of
from support.http import http_serving
from support.trust import Certificates
from support.trust import Tokens as TokensFile

BODY: dict[str, Any] = {"prompt": "x", "max_tokens": 3}


class Remembering(Counter):
    """Notes who asked."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: list[str] = []

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        self.callers.append(caller())
        async for event in super().generate(request):
            yield event


@asynccontextmanager
async def visiting(
    generator: Counter, guard: Guard | None = None, **more: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, HttpServer]]:
    given = () if guard is None else (guard,)
    async with (
        http_serving(generator, *given, **more) as server,
        httpx.AsyncClient(base_url=f"http://{server.address}", timeout=30) as client,
    ):
        yield client, server


async def ask(client: httpx.AsyncClient, path: str = "/v1/completions", **body: Any) -> httpx.Response:
    return await client.post(path, json=BODY | body)


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_whole_and_streamed() -> None:
    """The same text; a stream ends in [DONE]; the request id is the caller's own where it can be."""
    async with visiting(Counter()) as (client, _):
        whole = (await ask(client)).json()
        assert f"{text_of(3)}!" == whole["choices"][0]["text"]
        stream = await client.post("/v1/completions", json=BODY | {"stream": True}, headers={"x-request-id": "mine"})
        lines = [line.removeprefix("data: ") for line in stream.text.split("\n\n") if line]
        assert "[DONE]" == lines.pop()
        chunks = [json.loads(line) for line in lines]
        assert f"{text_of(3)}!" == "".join(chunk["choices"][0]["text"] for chunk in chunks)
        assert {"cmpl-mine"} == {chunk["id"] for chunk in chunks} and "mine" == stream.headers["x-request-id"]
        assert stream.headers["content-type"].startswith("text/event-stream")
        odd = await client.get("/health", headers={"x-request-id": "a b" * 99})
        assert 32 == len(odd.headers["x-request-id"])


@pytest.mark.asyncio
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.error.__name__)
async def test_every_error_has_its_status(row: Any) -> None:
    """Whatever a Generator refuses with is answered with the table's status, before and after the first event."""
    error = row.error("because", details={"field": "chat"}, retry_after=0.2 if row.http == 429 else None)
    async with visiting(Counter(faults={0: error, 1: error})) as (client, _):
        first = await client.post("/v1/completions", json=BODY)
        assert row.http == first.status_code == status_of(error)
        found = first.json()["error"]
        assert {"message", "type", "param", "code"} == set(found)
        assert ("because", "messages") == (found["message"], found["param"])
        if row.http in (429, 503):
            assert int(first.headers["retry-after"]) >= 1
        if row.http in (409, 500):
            assert "false" == first.headers["x-should-retry"]
        stream = await client.post("/v1/completions", json=BODY | {"stream": True})
        assert 200 == stream.status_code
        last = json.loads(stream.text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert found == last["error"]


def test_errors_are_what_openais_clients_look_for() -> None:
    """Codes that programs compare, and how long to wait, to the millisecond."""
    for error, kind, code in (
        (errors.PromptTooLong("x"), "invalid_request_error", "context_length_exceeded"),
        (errors.UnknownModel("x"), "invalid_request_error", "model_not_found"),
        (errors.AuthenticationFailed("x"), "authentication_error", "invalid_api_key"),
        (errors.PermissionDenied("x"), "permission_error", "permission_denied"),
        (errors.QuotaExceeded("x"), "rate_limit_error", "quota_exceeded"),
        (errors.Unavailable("x"), "server_error", "unavailable"),
    ):
        found = body_of(error)["error"]
        assert (kind, code) == (found["type"], found["code"])
    assert {"retry-after": "2", "retry-after-ms": "1200"} == headers_of(errors.QuotaExceeded("x", retry_after=1.2))


class Broken(Counter):
    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        raise RuntimeError("secret inner text")
        yield Tokens(())


@pytest.mark.asyncio
async def test_our_own_fault_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """500 with a request id that is in the log; nothing of the exception."""
    async with visiting(Broken()) as (client, _):
        found = await ask(client)
        assert 500 == found.status_code and "secret" not in found.text
        assert found.headers["x-request-id"] in found.json()["error"]["message"]
    assert "secret inner text" in caplog.text
    assert isinstance(InternalError("x"), SpecfleetError)


@pytest.mark.asyncio
async def test_openais_client_comes_back_when_told() -> None:
    """429 with retry-after: the client waits as long, asks again, and has its text."""
    generator = Counter(faults={0: Overloaded("busy", retry_after=0.05)})
    async with (
        http_serving(generator) as server,
        AsyncOpenAI(base_url=f"http://{server.address}/v1", api_key="none", max_retries=2) as client,
    ):
        found = await client.completions.create(model="", prompt="x", max_tokens=2)
    assert f"{text_of(2)}!" == found.choices[0].text
    assert 2 == len(generator.requests)


@pytest.mark.asyncio
async def test_a_generation_that_breaks_off_is_no_whole_answer() -> None:
    """503, or an error at the end of the stream; never a shorter text."""
    async with visiting(Counter(faults={1: "end"})) as (client, _):
        assert 503 == (await ask(client)).status_code
    async with visiting(Counter(faults={1: "end"})) as (client, _):
        assert "broke off" in (await ask(client, stream=True)).text


@pytest.mark.asyncio
async def test_paths_methods_and_media_types() -> None:
    """404, 405 and 415 have OpenAI's body, too; HEAD is as good as GET."""
    async with visiting(Counter()) as (client, _):
        for response, status, code in (
            (await client.get("/nowhere"), 404, "not_found"),
            (await client.get("/"), 404, "not_found"),
            (await client.get("/v1/completions"), 405, "method_not_allowed"),
            (await client.post("/v1/models", json={}), 405, "method_not_allowed"),
            (await client.post("/v1/completions", content=b"{}"), 415, "unsupported_media_type"),
            (await client.post("/v1/completions", data={"prompt": "x"}), 415, "unsupported_media_type"),
            (await client.get("/v1/models/other"), 404, "model_not_found"),
        ):
            assert (status, code) == (response.status_code, response.json()["error"]["code"])
        assert 200 == (await client.head("/health")).status_code
        assert "counting" == (await client.get("/v1/models")).json()["data"][0]["id"]
        metrics = (await client.get("/metrics")).text
        assert 'http_server_handled_total{http_code="404",http_route="other"}' in metrics
        assert "nowhere" not in metrics


# --- who calls -------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_api_keys_are_the_tokens(tmp_path: Path) -> None:
    """The same file, the same names; none, a wrong one and a revoked one are 401; probes and the page need none."""
    tokens = TokensFile(tmp_path / "tokens", "alice", "bob")
    generator = Remembering()
    async with visiting(generator, Guard(TokenFile(tokens.path)), page=True) as (client, _):
        for name in ("alice", "bob"):
            client.headers["authorization"] = f"Bearer {tokens[name]}"
            assert 200 == (await ask(client)).status_code
        assert ["alice", "bob"] == generator.callers
        tokens.write("alice")
        for header in (f"Bearer {tokens.tokens.get('bob', 'x')}", "Bearer wrong", "Basic x", "Bearer", ""):
            client.headers["authorization"] = header
            for response in (await ask(client), await client.get("/v1/models"), await client.get("/metrics")):
                assert 401 == response.status_code and "Bearer" == response.headers["www-authenticate"]
        del client.headers["authorization"]
        assert 401 == (await ask(client)).status_code
        for path in ("/health", "/ready", "/"):
            assert 200 == (await client.get(path)).status_code
    assert 2 == len(generator.requests)


@pytest.mark.asyncio
async def test_without_credentials_the_connection_is_the_identity() -> None:
    """On this machine each connection is a caller of its own, as over gRPC."""
    generator = Remembering()
    async with visiting(generator) as (client, _):
        await ask(client)
        await ask(client)
    (one,) = set(generator.callers)
    assert one.startswith("ipv4:127.0.0.1:")


@pytest.mark.asyncio
async def test_pages_of_other_sites_are_kept_out() -> None:
    """A name that was made to lead here is refused; addresses and names of this machine are not. With tokens all may."""
    async with visiting(Counter()) as (client, server):
        for host, status in (
            ("evil.example", 403),
            (f"evil.example:{server.address.rpartition(':')[2]}", 403),
            ("127.0.0.1.evil.example", 403),
            ("localhost:8000", 200),
            ("[::1]:8000", 200),
            ("192.168.1.5", 200),
            (socket.gethostname(), 200),
            ("drafter.local", 200),
        ):
            assert status == (await client.get("/v1/models", headers={"host": host})).status_code, host
        asked_first = await client.options("/v1/completions", headers={"origin": "https://evil.example"})
        assert 405 == asked_first.status_code and "access-control-allow-origin" not in asked_first.headers


@pytest.mark.asyncio
async def test_tls_with_certificates_that_change(tmp_path: Path) -> None:
    """Callers need a certificate and are called by its name; a new pair is shown from the next handshake on; without one, or
    with another authority's, nobody gets through."""
    ours, theirs = Certificates(tmp_path / "ours"), Certificates(tmp_path / "theirs", "other")
    pair = ours.server()
    generator = Remembering()
    shown = ServerCertificate(*pair, ours.ca)

    async def visit(client_pair: tuple[Path, Path] | None, address: str) -> str:
        context = ssl.create_default_context(cafile=ours.ca)
        if client_pair is not None:
            context.load_cert_chain(*client_pair)
        async with httpx.AsyncClient(verify=context, base_url=f"https://{address}") as client:
            response = await ask(client)
            assert 200 == response.status_code
            stream = response.extensions["network_stream"]
            return str(stream.get_extra_info("ssl_object").getpeercert()["serialNumber"])

    async with http_serving(generator, Guard(mutual=True), shown) as server:
        first = await visit(ours.client("edge-7"), server.address)
        assert ["edge-7"] == generator.callers
        for stranger in (None, theirs.client("edge-7")):
            with pytest.raises(httpx.TransportError):
                await visit(stranger, server.address)
        ours.server()
        assert first != await visit(ours.client("edge-8"), server.address)
    assert ["edge-7", "edge-8"] == generator.callers


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_bodies_that_are_too_large() -> None:
    """413, whether the length is said or not; nothing reaches the Generator."""
    generator = Counter()
    headers = {"content-type": "application/json"}

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(MAX_MESSAGE_BYTES // 2**16 + 2):
            yield b" " * 2**16

    async with visiting(generator) as (client, _):
        for content in (b" " * (MAX_MESSAGE_BYTES + 1), endless()):
            with suppress(httpx.WriteError):  # answered before it was all sent
                response = await client.post("/v1/completions", content=content, headers=headers)
                assert 413 == response.status_code
        assert 200 == (await ask(client)).status_code
    assert 1 == len(generator.requests)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it; fails when it does not come."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come")


async def raw(server: HttpServer, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    await writer.drain()
    return reader, writer


def posted(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    return head.replace("Host: x", "Host: localhost").encode() + b"\r\n\r\n" + content


@pytest.mark.asyncio
async def test_heads_and_bodies_that_do_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that never ends loses its connection, a body that does not come is 408."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(exchange, "BODY_SECONDS", 0.2)
    async with http_serving(Counter()) as server:
        for before in (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            reader, writer = await raw(server, before)
            if before:
                assert b" 200 " in await asyncio.wait_for(reader.readline(), 20)
            writer.write(b"GET /hea")
            with suppress(ConnectionError):
                while await asyncio.wait_for(reader.read(4096), 20):
                    pass
            writer.close()
        reader, writer = await raw(server, posted(BODY)[:-5])
        assert b" 408 " in await asyncio.wait_for(reader.readline(), 20)
        writer.close()


class Wide(Counter):
    """Tokens of much text, so that what nobody reads fills up what lies between."""

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        async for event in super().generate(request):
            yield Tokens(event.token_ids, "x" * 100_000) if isinstance(event, Tokens) else event


@pytest.mark.asyncio
async def test_a_reader_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its generation is closed, its connection gone."""
    generator = Wide()
    monkeypatch.setattr(exchange.Exchange.__init__, "__defaults__", (0.3,))
    async with http_serving(generator) as server:
        reader, writer = await raw(server, posted({"prompt": "x", "max_tokens": 10_000, "stream": True}))
        await until(lambda: generator.closed == 1)
        with suppress(ConnectionError):
            while await asyncio.wait_for(reader.read(2**20), 20):
                pass
        writer.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("stream", [True, False])
async def test_a_caller_who_leaves_closes_the_generation(stream: bool) -> None:
    """At once, streamed or not, while it waits for a token."""
    generator = Counter(faults={2: "hang"})
    async with http_serving(generator) as server:
        _, writer = await raw(server, posted(BODY | {"stream": stream}))
        await until(lambda: 2 not in generator.faults)
        writer.close()
        await until(lambda: generator.closed == 1)


@pytest.mark.asyncio
async def test_drain_finishes_what_it_can_and_tells_the_rest() -> None:
    """Not ready, no new connections; what ends in time is whole, what does not is told to move."""
    generator = Counter(delay=0.02)
    async with visiting(generator) as (client, server):
        short = asyncio.create_task(ask(client, max_tokens=20))
        stuck = asyncio.create_task(ask(client, max_tokens=10**6))
        streamed = asyncio.create_task(ask(client, max_tokens=10**6, stream=True))
        await until(lambda: len(generator.requests) == 3)
        draining = asyncio.create_task(server.drain(2.0))
        assert f"{text_of(20)}!" == (await short).json()["choices"][0]["text"]
        assert 503 == (await stuck).status_code and "stopping" in (await stuck).text
        assert '"code":"unavailable"' in (await streamed).text
        await draining
        with pytest.raises(httpx.TransportError):
            await client.get("/health")
    assert 3 == generator.closed


@pytest.mark.asyncio
async def test_a_daemon_without_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to have none, it has none; told to have one where the extra is missing, it says what to install."""
    config = DrafterConfig(model="ngram", http="")
    nothing = http_server(config, CollectorRegistry(), Guard(), None)
    await nothing.start(Counter(), str)
    await nothing.ready(True)
    await nothing.drain(0.0)
    assert "off" == nothing.address
    monkeypatch.setattr("specfleet.http.missing", lambda module: module == "uvicorn")
    with pytest.raises(ConfigurationError, match=r"needs uvicorn: pip install 'specfleet\[http\]', or say --http ''"):
        http_server(DrafterConfig(model="ngram", http="127.0.0.1:0"), CollectorRegistry(), Guard(), None)


@pytest.mark.asyncio
async def test_a_port_in_use_is_said_before_anything_takes_long() -> None:
    """One line with the address."""
    async with http_serving(Counter()) as server:
        with pytest.raises(ConfigurationError, match=f"cannot listen on {server.address}: address already in use"):
            HttpServer(server.address, CollectorRegistry(), Guard())
