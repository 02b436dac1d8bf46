"""Trust between real daemons: TLS, mTLS and tokens from the command line on, and what is refused, with its exit code."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from specfleet import AuthenticationFailed, Client, ConnectionError_, PermissionDenied, QuotaExceeded, SpecfleetError
from support.daemons import ANY_PORT, Daemon, running, start_verifier, wait_until_empty
from support.pair import DRAFT
from support.trust import Certificates, Tokens


@dataclass
class Secured:
    """A verifier that asks for certificates and tokens; a drafter with both in front of it, that asks for tokens."""

    verifier: Daemon
    drafter: Daemon
    certificates: Certificates
    verifier_tokens: Tokens
    drafter_tokens: Tokens


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("trust")
    certificates = Certificates(folder / "certs")
    certificate, key = certificates.server()
    shown, shown_key = certificates.client("edge-7")
    verifier_tokens = Tokens(folder / "verifier.tokens", "edge-7", "edge-8", "stranger")
    drafter_tokens = Tokens(folder / "drafter.tokens", "alice", "bob")
    (folder / "token").write_text(verifier_tokens["edge-7"])
    tls = ("--tls-cert", str(certificate), "--tls-key", str(key))
    with ExitStack() as stack:
        verifier = stack.enter_context(
            running(
                start_verifier(
                    *(*tls, "--tls-client-ca", str(certificates.ca), "--tokens", str(verifier_tokens.path)),
                    *("--allow", "edge-7", "--allow", "edge-8", "--share", "edge-8:sessions=1"),
                )
            )
        )
        drafter = stack.enter_context(
            running(
                Daemon(
                    *("drafter", "--model", str(DRAFT), "--verifier", verifier.address),
                    *(
                        "--listen",
                        ANY_PORT,
                        "--http",
                        ANY_PORT,
                        "--metrics",
                        ANY_PORT,
                        *tls,
                        "--tokens",
                        str(drafter_tokens.path),
                    ),
                    *("--verifier-ca", str(certificates.ca), "--verifier-token", str(folder / "token")),
                    *("--verifier-cert", str(shown), "--verifier-key", str(shown_key)),
                )
            )
        )
        yield Secured(verifier, drafter, certificates, verifier_tokens, drafter_tokens)
        secrets = [*verifier_tokens.tokens.values(), *drafter_tokens.tokens.values(), "PRIVATE KEY"]
        for daemon in (verifier, drafter):
            assert not [secret for secret in secrets if secret in daemon.output]


def specfleet(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "specfleet"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **env})


def test_all_of_it_together(secured: Secured) -> None:
    """SDK, drafter and verifier over TLS, mTLS and tokens: a text, and no secret in configuration or log."""
    tls = secured.certificates.tls()
    with Client(secured.drafter.address, tls=tls, token=secured.drafter_tokens["alice"]) as client:
        assert 8 == len(client.generate("Once upon a time", max_tokens=8, ignore_eos=True).token_ids)
    assert "tls_cert = " in secured.verifier.output
    assert "verifier_token = " in secured.drafter.output


def test_over_http_too(secured: Secured) -> None:
    """The OpenAI client with the same authority and the same token; without either it gets nowhere."""
    address, tokens = secured.drafter.said("http"), secured.drafter_tokens
    context = ssl.create_default_context(cafile=secured.certificates.ca)
    asked: dict[str, Any] = {
        "model": "",
        "prompt": "Once upon a time",
        "max_tokens": 8,
        "extra_body": {"ignore_eos": True},
    }
    with httpx.Client(verify=context) as trusting:
        for key, error in ((tokens["alice"], None), ("wrong", openai.AuthenticationError)):
            client = openai.OpenAI(base_url=f"https://{address}/v1", api_key=key, http_client=trusting, max_retries=0)
            if error is None:
                reply = client.completions.create(**asked)
                assert reply.usage is not None and 8 == reply.usage.completion_tokens
            else:
                with pytest.raises(error):
                    client.completions.create(**asked)
        assert 200 == trusting.get(f"https://{address}/ready").status_code
        assert 401 == trusting.get(f"https://{address}/metrics").status_code
    for base in (f"https://{address}", f"http://{address}"):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{base}/health")


def test_the_command_line_brings_credentials(secured: Secured) -> None:
    """`generate` with an authority and SPECFLEET_TOKEN works; without the token it is refused (4), without TLS it reaches
    nobody (3)."""
    base = ("generate", "Hello", "--server", secured.drafter.address, "--max-tokens", "2")
    ca = ("--tls-ca", str(secured.certificates.ca))
    token = secured.drafter_tokens["alice"]
    for arguments, env, code in (
        ((*base, *ca), {"SPECFLEET_TOKEN": token}, 0),
        ((*base, *ca), {"SPECFLEET_TOKEN": "wrong"}, 4),
        ((*base, *ca), {"HOME": "/"}, 4),
        (base, {"SPECFLEET_TOKEN": token}, 3),
        ((*base, "--tls"), {"SPECFLEET_TOKEN": token}, 3),
    ):
        result = specfleet(*arguments, **env)
        assert code == result.returncode, result.stderr
        assert token not in result.stdout + result.stderr


def test_nobody_else_gets_in(secured: Secured, tmp_path: Path) -> None:
    """Wrong authority, wrong name, expired, none; no token, a wrong one, one that may not call: each refused with its error,
    and no generation begins."""
    ours, foreign = secured.certificates, Certificates(tmp_path / "foreign")
    shown = ours.tls(ours.client("edge-8"))
    token = secured.verifier_tokens["edge-8"]
    attempts: list[tuple[type[SpecfleetError], dict[str, object]]] = [
        (ConnectionError_, {"tls": foreign.tls(ours.client("edge-8")), "token": token}),
        (ConnectionError_, {"tls": ours.tls(foreign.client("edge-8")), "token": token}),
        (ConnectionError_, {"tls": ours.tls(ours.client("old", days=-1)), "token": token}),
        (ConnectionError_, {"tls": ours.tls(), "token": token}),
        (ConnectionError_, {"token": token}),
        (AuthenticationFailed, {"tls": shown}),
        (AuthenticationFailed, {"tls": shown, "token": "wrong"}),
        (AuthenticationFailed, {"tls": shown, "token": secured.drafter_tokens["alice"]}),
        (PermissionDenied, {"tls": shown, "token": secured.verifier_tokens["stranger"]}),
    ]
    for error, credentials in attempts:
        with Client(secured.verifier.address, retries=0, connect_timeout=3.0, **credentials) as client:  # type: ignore[arg-type]
            with pytest.raises(error) as caught:
                client.generate("x", max_tokens=1)
            assert error is type(caught.value)
            assert token not in str(caught.value)
    wait_until_empty(secured.verifier)
    for code, least in (("UNAUTHENTICATED", 3), ("PERMISSION_DENIED", 1)):
        assert secured.verifier.metric("grpc_server_handled_total", grpc_code=code) >= least
    with urllib.request.urlopen(f"http://{secured.verifier.said('metrics')}/metrics", timeout=10) as reply:
        exported = reply.read().decode()
    assert not [secret for secret in secured.verifier_tokens.tokens.values() if secret in exported]


def test_a_certificate_for_another_name(secured: Secured) -> None:
    """The server is who the address says, or nobody: 127.0.0.2 is this machine, and not what the certificate names."""
    address = secured.verifier.address.replace("127.0.0.1", "127.0.0.2")
    ours = secured.certificates
    with (
        Client(
            address, retries=0, tls=ours.tls(ours.client("edge-8")), token=secured.verifier_tokens["edge-8"]
        ) as client,
        pytest.raises(ConnectionError_),
    ):
        client.generate("x", max_tokens=1)


def test_limits_are_an_identitys(secured: Secured) -> None:
    """edge-8 may have one session open, however it comes; edge-7, for whom the drafter works, is not affected. Nobody's
    session can be taken up by its request id: that is a new session, and counts as one."""
    ours = secured.certificates
    credentials = {"tls": ours.tls(ours.client("edge-8")), "token": secured.verifier_tokens["edge-8"]}
    long = {"max_tokens": 1500, "ignore_eos": True, "request_id": "mine"}
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(Client(secured.verifier.address, retries=0, **credentials))  # type: ignore[arg-type]
            for _ in range(2)
        )
        other = stack.enter_context(
            Client(secured.drafter.address, tls=ours.tls(), token=secured.drafter_tokens["bob"])
        )
        stream = stack.enter_context(first.stream("The sea", **long))  # type: ignore[arg-type]
        next(iter(stream))
        with pytest.raises(QuotaExceeded) as caught:
            second.generate("The sea", request_id="mine", max_tokens=1)
        assert caught.value.retry_after is not None
        assert 4 == len(other.generate("A hill", request_id="mine", max_tokens=4, ignore_eos=True).token_ids)
        next(iter(stream))
    wait_until_empty(secured.verifier)


def test_a_token_is_revoked_while_daemons_run(secured: Secured) -> None:
    """From the next call on."""
    tls, token = secured.certificates.tls(), secured.drafter_tokens["bob"]
    with Client(secured.drafter.address, tls=tls, token=token) as client:
        client.generate("x", max_tokens=1)
        secured.drafter_tokens.write("alice")
        with pytest.raises(AuthenticationFailed, match="revoked"):
            client.generate("x", max_tokens=1)


def test_certificates_are_renewed_while_daemons_run(secured: Secured) -> None:
    """Both daemons show the new certificate at the next handshake; what runs goes on."""
    tls = secured.certificates.tls()
    token = secured.drafter_tokens["alice"]
    with (
        Client(secured.drafter.address, tls=tls, token=token) as client,
        client.stream("The sea", max_tokens=300, ignore_eos=True) as stream,
    ):
        next(iter(stream))
        secured.certificates.server()
        secured.certificates.client("edge-7")
        with Client(secured.drafter.address, tls=tls, token=token) as other:
            assert 4 == len(other.generate("A hill", max_tokens=4, ignore_eos=True).token_ids)
        for _ in stream:
            pass
        assert 300 == len(stream.token_ids)
    assert "files read again" in secured.verifier.output


def test_plaintext_off_loopback_must_be_meant() -> None:
    """Both daemons refuse to listen and to dial in the clear beyond this machine: exit code 2, one line with the way out."""
    everywhere = ("--listen", "0.0.0.0:0", "--http", "", "--metrics", "")
    here = ("--listen", ANY_PORT, "--http", "", "--metrics", "")
    for arguments in (
        ("verifier", "--model", str(DRAFT), *everywhere),
        ("drafter", "--model", "ngram", *everywhere),
        ("drafter", "--model", "ngram", "--verifier", "192.0.2.1:7600", *here),
        ("drafter", "--model", "ngram", "--listen", ANY_PORT, "--metrics", "", "--http", "0.0.0.0:0"),
        ("generate", "x", "--server", "192.0.2.1:7700"),
    ):
        result = specfleet(*arguments)
        assert 2 == result.returncode, result.stderr
        assert 1 == len(result.stderr.splitlines()) and "insecure" in result.stderr


def test_a_drafter_with_wrong_credentials_does_not_start(secured: Secured, tmp_path: Path) -> None:
    """A token that is not known: exit code 4, at once. (A wrong certificate looks like nobody there: exit code 3.)"""
    (tmp_path / "token").write_text("wrong")
    ours = secured.certificates
    certificate, key = ours.client("edge-9")
    result = specfleet(
        *(
            "drafter",
            "--model",
            "ngram",
            "--verifier",
            secured.verifier.address,
            "--listen",
            ANY_PORT,
            "--http",
            "",
            "--metrics",
            "",
        ),
        *("--verifier-ca", str(ours.ca), "--verifier-cert", str(certificate), "--verifier-key", str(key)),
        *("--verifier-token", str(tmp_path / "token")),
    )
    assert 4 == result.returncode and "token" in result.stderr and "wrong" not in result.stderr


def test_certs_and_token_make_what_daemons_take(tmp_path: Path) -> None:
    """`specfleet certs` and `specfleet token`, as in their help: keys for their owner alone, a second run keeps the
    authority, a name that is none is refused."""
    folder, tokens = tmp_path / "certs", tmp_path / "tokens"
    made = specfleet("certs", str(folder), "--host", "127.0.0.1", "--client", "edge-7")
    assert 0 == made.returncode, made.stderr
    assert {"ca.pem", "ca.key", "server.pem", "server.key", "edge-7.pem", "edge-7.key"} == {
        one.name for one in folder.iterdir()
    }
    assert {0o600} == {one.stat().st_mode & 0o777 for one in folder.glob("*.key")}
    authority, server = (folder / "ca.pem").read_bytes(), (folder / "server.pem").read_bytes()
    assert 0 == specfleet("certs", str(folder), "--host", "127.0.0.1").returncode
    assert authority == (folder / "ca.pem").read_bytes() and server != (folder / "server.pem").read_bytes()
    token = specfleet("token", "alice", "--file", str(tokens)).stdout.strip()
    assert token not in tokens.read_text() and 0o600 == tokens.stat().st_mode & 0o777
    tls = ("--tls-cert", str(folder / "server.pem"), "--tls-key", str(folder / "server.key"))
    with running(start_verifier(*tls, "--tokens", str(tokens))) as verifier:
        result = specfleet(
            *(
                "generate",
                "Hello",
                "--server",
                verifier.address,
                "--max-tokens",
                "2",
                "--tls-ca",
                str(folder / "ca.pem"),
            ),
            SPECFLEET_TOKEN=token,
        )
        assert 0 == result.returncode, result.stderr
    for arguments in (
        ("certs", str(folder), "--client", "../x"),
        ("certs", str(folder), "--days", "0"),
        ("token", "a b"),
    ):
        assert 2 == specfleet(*arguments).returncode
