"""Who gets in: TLS, mTLS and tokens on a real server of this process, and what is said to those who do not get in."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from drafter.config import DrafterConfig
from specfleet import AsyncClient, AuthenticationFailed, ConfigurationError, ConnectionError_, PermissionDenied, Tls
from specfleet.core.address import is_loopback
from specfleet.core.config import load
from specfleet.core.generation import Event, GenerationRequest
from specfleet.wire.auth import Guard, TokenFile, caller, hash_of, identity_of, new_token
from specfleet.wire.channel import Dialer, open_channel
from specfleet.wire.credentials import Credentials, token_file
from specfleet.wire.drain import MAX_WATCHERS
from specfleet.wire.server import Server
from specfleet.wire.tls import ServerCertificate, watched_tls
from specfleet.wire.verification import GrpcVerifierConnection
from support.generation import Counter
from support.trust import Certificates, Tokens
from support.wire import Backend
from verifier.config import VerifierConfig


class Remembering(Counter):
    """Notes who asked."""

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__(delay=delay)
        self.callers: list[str] = []

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        self.callers.append(caller())
        async for event in super().generate(request):
            yield event


@asynccontextmanager
async def guarded(guard: Guard, certificate: ServerCertificate | None = None) -> AsyncIterator[tuple[str, Remembering]]:
    """A server with both services behind `guard`: its address, and what got through to it."""
    server = Server((), guard, certificate)
    generator = Remembering()
    address = server.bind("127.0.0.1:0")
    server.add_generation(generator)
    server.add_verification(Backend())
    await server.start()
    await server.ready(True)
    try:
        yield address, generator
    finally:
        await server.stop(0.0)


async def ask(address: str, **credentials: Any) -> str:
    async with AsyncClient(address, retries=0, connect_timeout=3.0, **credentials) as client:
        return (await client.generate("x", max_tokens=1)).text


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "ours")


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_token_lets_in_and_names_its_owner(tmp_path: Path) -> None:
    """The name beside the token's hash is who asked, whatever the caller's address."""
    tokens = Tokens(tmp_path / "tokens", "alice", "bob")
    async with guarded(Guard(TokenFile(tokens.path))) as (address, generator):
        await ask(address, token=tokens["alice"])
        await ask(address, token=lambda: tokens["bob"])
        assert ["alice", "bob"] == generator.callers


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "needs a token"),
        ("wrong", "not known here"),
        (hash_of("anything"), "not known here"),
        ("x" * 4000, "not known here"),
    ],
)
@pytest.mark.asyncio
async def test_no_token_and_wrong_tokens_are_refused(
    tmp_path: Path, token: str | None, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """UNAUTHENTICATED, nothing reaches the generator, and the token is in no error and no log."""
    tokens = Tokens(tmp_path / "tokens", "alice")
    caplog.set_level(logging.DEBUG)
    async with guarded(Guard(TokenFile(tokens.path))) as (address, generator):
        with pytest.raises(AuthenticationFailed, match=message) as caught:
            await ask(address, token=token)
        with pytest.raises(AuthenticationFailed):
            await GrpcVerifierConnection(address, Credentials(token)).model()
    assert [] == generator.requests
    for secret in filter(None, (token, tokens["alice"])):
        assert secret not in str(caught.value) + repr(caught.value.details) + caplog.text


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic dXNlcjpwdw==", "bearer  wrong"])
@pytest.mark.asyncio
async def test_headers_that_are_no_bearer_token(tmp_path: Path, header: str) -> None:
    """Whatever stands in the header, the answer is UNAUTHENTICATED."""
    tokens = Tokens(tmp_path / "tokens", "alice")
    async with guarded(Guard(TokenFile(tokens.path))) as (address, _), open_channel(address) as channel:
        for pairs in ([("authorization", header)], [("authorization", f"Bearer {tokens['alice']}")] * 2):
            call = channel.unary_unary("/specfleet.v1.VerificationService/GetModel")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"", metadata=pairs, timeout=5)
            assert grpc.StatusCode.UNAUTHENTICATED is caught.value.code()


@pytest.mark.asyncio
async def test_tokens_are_revoked_and_added_while_serving(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file is read again when it changes; while it makes no sense, the tokens of before hold, and the log says so."""
    tokens = Tokens(tmp_path / "tokens", "alice", "bob")
    bob = tokens["bob"]
    async with guarded(Guard(TokenFile(tokens.path))) as (address, _):
        await ask(address, token=bob)
        tokens.write("alice", "carol")
        with pytest.raises(AuthenticationFailed, match="revoked"):
            await ask(address, token=bob)
        await ask(address, token=tokens["carol"])
        tokens.path.write_text("carol in the clear: 123\n")
        await ask(address, token=tokens["carol"])
        assert "line 1 of" in "".join(str(vars(record)) for record in caplog.records)
        assert "123" not in "".join(str(vars(record)) for record in caplog.records)
        tokens.path.write_text("")
        with pytest.raises(AuthenticationFailed):
            await ask(address, token=tokens["carol"])


@pytest.mark.asyncio
async def test_only_those_named_may_call(tmp_path: Path) -> None:
    """With --allow, a known identity that is not among them gets PERMISSION_DENIED."""
    tokens = Tokens(tmp_path / "tokens", "alice", "bob")
    async with guarded(Guard(TokenFile(tokens.path), allow=frozenset({"alice"}))) as (address, generator):
        await ask(address, token=tokens["alice"])
        with pytest.raises(PermissionDenied, match="bob may not call"):
            await ask(address, token=tokens["bob"])
        assert ["alice"] == generator.callers


@pytest.mark.asyncio
async def test_health_answers_anybody_and_reflection_does_not(tmp_path: Path) -> None:
    """What probes a daemon has no token; everything else needs one."""
    tokens = Tokens(tmp_path / "tokens", "alice")
    async with guarded(Guard(TokenFile(tokens.path))) as (address, _), open_channel(address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health_pb2.HealthCheckResponse.SERVING == answer.status
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert grpc.StatusCode.UNAUTHENTICATED is caught.value.code()


@pytest.mark.asyncio
async def test_watchers_leave_room_for_others(tmp_path: Path) -> None:
    """Health needs no credentials, so watching it is limited; probes and those with a token notice nothing."""
    tokens = Tokens(tmp_path / "tokens", "alice")
    async with guarded(Guard(TokenFile(tokens.path))) as (address, _), open_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(MAX_WATCHERS)]
        for watch in watches:
            await watch.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Watch(health_pb2.HealthCheckRequest()).read()
        assert grpc.StatusCode.RESOURCE_EXHAUSTED is caught.value.code()
        assert health_pb2.HealthCheckResponse.SERVING == (await health.Check(health_pb2.HealthCheckRequest())).status
        await ask(address, token=tokens["alice"])


@pytest.mark.parametrize(
    "line", ["alice", "alice secret", f"alice {hash_of('x')} more", f"{'a' * 129} {hash_of('x')}", "alice sha256:12"]
)
def test_lines_that_are_no_token(tmp_path: Path, line: str) -> None:
    """A tokens file that cannot be used is told by file and line, without what stands there."""
    path = tmp_path / "tokens"
    path.write_text(f"# a comment\n\n{line}\n")
    with pytest.raises(ConfigurationError, match=r"line 3 of .*tokens is not NAME sha256:HASH") as caught:
        TokenFile(path)
    assert "secret" not in str(caught.value)


def test_tokens_are_long_and_hashed(tmp_path: Path) -> None:
    """256 bits; the file shows nothing of them, and a name may have several."""
    tokens = {new_token() for _ in range(100)}
    assert 100 == len(tokens) and all(len(token) == 43 for token in tokens)
    old, new = sorted(tokens)[:2]
    path = tmp_path / "tokens"
    path.write_text(f"alice {hash_of(old)}\nalice {hash_of(new)} # from next week on\n")
    assert old not in path.read_text()
    assert ["alice", "alice", None] == [TokenFile(path).name_of(one) for one in (old, new, "other")]


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "müde", "\x00"])
def test_a_token_that_cannot_travel_is_not_shown(token: str) -> None:
    """gRPC's own complaint would have the token in it."""
    with pytest.raises(ConfigurationError, match="cannot be part of one") as caught:
        Credentials(token).metadata()
    assert not token or token not in str(caught.value)
    assert "secret" not in repr(Credentials("secret", Tls(b"ca", b"c", b"secret")))


def test_a_token_file_is_read_again(tmp_path: Path) -> None:
    """A drafter's own token may be replaced while it runs; an empty file changes nothing."""
    path = tmp_path / "token"
    path.write_text("first\n")
    token = token_file(path)
    assert token is not None and "first" == token()
    path.write_text("second, longer".replace(", ", "-"))
    assert "second-longer" == token()
    path.write_text("")
    assert "second-longer" == token()


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_who_the_server_is_must_be_certified(tmp_path: Path, certificates: Certificates) -> None:
    """Another authority, another name, an expired certificate, no TLS at all: nobody is talked to."""
    foreign = Certificates(tmp_path / "foreign")
    expired = ServerCertificate(*certificates.server(stem="expired", days=-1))
    elsewhere = ServerCertificate(*certificates.server("elsewhere", stem="elsewhere"))
    right = ServerCertificate(*certificates.server())
    async with guarded(Guard(), right) as (address, generator):
        assert "0 !" == await ask(address, tls=certificates.tls())
        for tls in (foreign.tls(), Tls(), None):
            with pytest.raises(ConnectionError_, match="cannot reach"):
                await ask(address, tls=tls)
        assert 1 == len(generator.requests)
    for certificate, message in ((expired, "certificate has expired"), (elsewhere, "for other names")):
        async with guarded(Guard(), certificate) as (address, generator):
            with pytest.raises(ConnectionError_, match=message):
                await ask(address, tls=certificates.tls())
            assert [] == generator.requests


@pytest.mark.asyncio
async def test_who_the_caller_is_must_be_certified(tmp_path: Path, certificates: Certificates) -> None:
    """mTLS: the certificate's name is who asks; none, an expired one, a foreign one, a server's one do not get through the
    handshake."""
    foreign = Certificates(tmp_path / "foreign")
    pair = certificates.server()
    certificate = ServerCertificate(*pair, certificates.ca)
    async with guarded(Guard(mutual=True, allow=frozenset({"edge-7"})), certificate) as (address, generator):
        await ask(address, tls=certificates.tls(certificates.client("edge-7")))
        refused = [(None, None), certificates.client("old", days=-1), foreign.client("edge-7"), pair]
        for shown in refused:
            with pytest.raises(ConnectionError_, match="cannot reach"):
                await ask(address, tls=certificates.tls(shown))
        with pytest.raises(PermissionDenied, match="edge-8 may not call"):
            await ask(address, tls=certificates.tls(certificates.client("edge-8")))
        assert ["edge-7"] == generator.callers


@pytest.mark.asyncio
async def test_certificates_change_while_serving(tmp_path: Path, certificates: Certificates) -> None:
    """A new certificate of a new authority is shown from the next handshake on; a running connection stays. A key that does
    not fit its certificate changes nothing."""
    pair = certificates.server()
    async with guarded(Guard(), ServerCertificate(*pair)) as (address, _):
        async with AsyncClient(address, tls=certificates.tls()) as staying:
            await staying.generate("x", max_tokens=1)
            successor = Certificates(tmp_path / "next")
            fresh = successor.server()
            for old, new in zip(pair, fresh, strict=True):
                old.write_bytes(new.read_bytes())
            await ask(address, tls=successor.tls())
            with pytest.raises(ConnectionError_):
                await ask(address, tls=certificates.tls())
            await staying.generate("x", max_tokens=1)
        pair[1].write_text("no key")
        await ask(address, tls=successor.tls())


@pytest.mark.asyncio
async def test_a_caller_takes_up_its_new_certificates(tmp_path: Path, certificates: Certificates) -> None:
    """A caller's files may change, too: the next call opens a connection with them, the ones that run end where they are."""
    pair = certificates.client("edge-7")
    tls = watched_tls(certificates.ca, *pair)
    certificate = ServerCertificate(*certificates.server(), certificates.ca)
    async with (
        guarded(Guard(mutual=True), certificate) as (address, generator),
        AsyncClient(address, tls=tls) as client,
    ):
        stream = client.stream("x", max_tokens=3)
        await anext(stream)
        for old, new in zip(pair, certificates.client("edge-8"), strict=True):
            new.replace(old)
        await client.generate("x", max_tokens=1)
        async for _ in stream:
            pass
        assert 3 == len(stream.token_ids)
        assert ["edge-7", "edge-8"] == generator.callers


@pytest.mark.asyncio
async def test_a_new_authority_for_callers_is_taken_up(tmp_path: Path, certificates: Certificates) -> None:
    """Whoever the former authority vouched for does not get in any more."""
    successor = Certificates(tmp_path / "next")
    certificate = ServerCertificate(*certificates.server(), certificates.ca)
    before, after = certificates.client("edge-7"), successor.client("edge-7")
    roots = certificates.ca.read_bytes()
    async with guarded(Guard(mutual=True), certificate) as (address, _):
        await ask(address, tls=Tls(roots, before[0].read_bytes(), before[1].read_bytes()))
        certificates.ca.write_bytes(successor.ca.read_bytes())
        await ask(address, tls=Tls(roots, after[0].read_bytes(), after[1].read_bytes()))
        with pytest.raises(ConnectionError_):
            await ask(address, tls=Tls(roots, before[0].read_bytes(), before[1].read_bytes()))


def test_files_that_are_no_certificates(tmp_path: Path, certificates: Certificates) -> None:
    """Each is told by name before anything listens, and no file's content is in the text."""
    certificate, key = certificates.server()
    _, other = certificates.client("edge-7")
    empty, missing = tmp_path / "empty", tmp_path / "missing"
    empty.write_text("")
    with pytest.raises(ConfigurationError, match="key values mismatch"):
        ServerCertificate(certificate, other)
    for one, two, named in ((empty, key, "empty"), (certificate, empty, "empty"), (missing, key, "missing")):
        with pytest.raises(ConfigurationError, match=named):
            ServerCertificate(one, two)
    with pytest.raises(ConfigurationError, match="empty holds no certificates"):
        ServerCertificate(certificate, key, empty)
    with pytest.raises(ConfigurationError, match="needs its private key"):
        Tls(b"ca", b"certificate")


# --- plaintext -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])
def test_plaintext_stays_on_this_machine(address: str) -> None:
    """Loopback needs nothing said."""
    assert is_loopback(address)
    Dialer(address)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:7600", "gpu-1:7600", "localhost.example.org:1"])
@pytest.mark.asyncio
async def test_plaintext_to_others_must_be_meant(address: str) -> None:
    """Refused for listening and for dialling; --insecure lets it, and so does TLS."""
    assert not is_loopback(address)
    with pytest.raises(ConfigurationError, match=r"--tls-cert.*--insecure"):
        Server().bind(address)
    with pytest.raises(ConfigurationError, match="insecure"):
        Dialer(address)
    with pytest.raises(ConfigurationError, match="insecure"):
        GrpcVerifierConnection(address, Credentials("token"))
    Dialer(address, Credentials(insecure=True))
    Dialer(address, Credentials(tls=Tls()))


@pytest.mark.asyncio
async def test_insecure_listens_anywhere() -> None:
    """Said aloud, it is done."""
    server = Server(insecure=True)
    assert server.bind("0.0.0.0:0").startswith("0.0.0.0:")
    await server.stop(0.0)


@pytest.mark.parametrize(
    ("peer", "identity"),
    [
        ("ipv4:192.0.2.7:51000", "192.0.2.7"),
        ("ipv6:%5B2001:db8::1%5D:51000", "2001:db8::1"),
        ("ipv4:127.0.0.1:51000", "ipv4:127.0.0.1:51000"),
        ("unix:", "unix:"),
    ],
)
def test_without_credentials_the_host_is_who_asks(peer: str, identity: str) -> None:
    """More connections buy nothing, except on this machine, where all have one host."""
    assert identity == identity_of(peer)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tls_cert": "a"}, "--tls-cert and --tls-key need each other"),
        ({"tls_key": "a"}, "--tls-cert and --tls-key need each other"),
        ({"tls_client_ca": "a"}, "--tls-client-ca needs TLS"),
        ({"allow": ("alice",)}, "--allow needs credentials"),
    ],
)
def test_settings_that_need_others(flags: dict[str, Any], message: str) -> None:
    """Half a setting is a mistake that would let somebody in, or nobody."""
    for model, section in ((VerifierConfig, "verifier"), (DrafterConfig, "drafter")):
        with pytest.raises(ConfigurationError, match=message):
            load(model, section=section, env={}, flags={"model": "m", **flags})
    with pytest.raises(ConfigurationError, match="--verifier-cert and --verifier-key"):
        load(DrafterConfig, section="drafter", env={}, flags={"model": "m", "verifier_key": "k"})
