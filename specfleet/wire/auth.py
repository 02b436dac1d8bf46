"""Who calls: certificates and bearer tokens become an identity, or a refusal, before any handler sees the call.

A tokens file holds a name and the hash of a token per line, so that whoever reads it can call nobody:

    # name    hash
    alice     sha256:9f86d081884c7d65…

Tokens are long and random (`specfleet token`), which a plain hash protects as well as a slow one would.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from specfleet.core.errors import AuthenticationFailed, ConfigurationError, PermissionDenied
from specfleet.wire.interceptors import wrapped
from specfleet.wire.status import answering
from specfleet.wire.watched import Watched, read_bytes

OPEN_SERVICES = ("grpc.health.v1.Health",)
"""Answer anybody: what probes a daemon has no token."""
HASH = "sha256:"
_NAME = re.compile(r"[^\s#]{1,128}")
_HASH = re.compile(rf"{HASH}[0-9a-f]{{64}}")
_SCHEME = "bearer "

_caller: ContextVar[str] = ContextVar("specfleet_caller")


def caller() -> str:
    """Identity behind the call that is being handled. Raises LookupError outside of one."""
    return _caller.get()


def handling(identity: str) -> None:
    """From here on this task, and those it starts, handle a call of `identity`."""
    _caller.set(identity)


def new_token() -> str:
    """256 bits of chance."""
    return secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    return HASH + hashlib.sha256(token.encode()).hexdigest()


class TokenFile:
    """Names by the hashes of their tokens, read again when the file changes."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError naming file and line."""
        self._hashes = Watched([path], lambda: parse_tokens(path))

    def name_of(self, token: str) -> str | None:
        """Whose token it is. Every line is compared, each in constant time."""
        asked, found = hash_of(token), None
        for known, name in self._hashes.get().items():
            if hmac.compare_digest(known, asked):
                found = name
        return found


def parse_tokens(path: Path) -> dict[str, str]:
    """Hash -> name. Several tokens may have one name, so that they can be changed without a gap. Raises ConfigurationError."""
    found: dict[str, str] = {}
    for number, line in enumerate(read_bytes(path).decode("utf-8", "replace").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not _NAME.fullmatch(words[0]) or not _HASH.fullmatch(words[1]):
            # Without the line itself: somebody may have put a token there.
            raise ConfigurationError(
                f"line {number} of {path} is not NAME {HASH}HASH (64 hexadecimal digits); specfleet token makes such lines"
            )
        found[words[1]] = words[0]
    return found


@dataclass(frozen=True, slots=True)
class Presented:
    """What a call brings with it, over gRPC and HTTP alike."""

    peer: str
    """Where it comes from, as gRPC writes it: ipv4:HOST:PORT, ipv6:%5BHOST%5D:PORT."""
    authorization: tuple[str, ...] = field(default=(), repr=False)
    """Every header of that name."""
    certificate: tuple[str, ...] = ()
    """Names in the certificate that the handshake has checked, the common name first."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Whom a server lets in. Without any of these, everybody who reaches it."""

    tokens: TokenFile | None = None
    """Every call needs one of these tokens; its name is the caller's identity."""
    mutual: bool = False
    """The handshake asked for a certificate; without tokens its subject is the caller's identity."""
    allow: frozenset[str] = frozenset()
    """Identities that may call; empty for all that credentials vouch for."""

    def identity(self, shown: Presented) -> str:
        """Who calls.

        Raises:
            AuthenticationFailed: no token, or none that is known here; a certificate that names nobody.
            PermissionDenied: known, and not one of those who may call.
        """
        if self.tokens is not None:
            identity = self._by_token(self.tokens, shown.authorization)
        elif self.mutual:
            identity = next(filter(None, shown.certificate), "")
            if not identity:
                raise AuthenticationFailed("the certificate names nobody; it needs a common name")
        else:
            return identity_of(shown.peer)
        if self.allow and identity not in self.allow:
            raise PermissionDenied(f"{identity} may not call this server; its operator lets in others only")
        return identity

    @staticmethod
    def _by_token(tokens: TokenFile, headers: tuple[str, ...]) -> str:
        if not headers:
            raise AuthenticationFailed(
                "this server needs a token; send one with the call (authorization: Bearer TOKEN)"
            )
        value = headers[0]
        if len(headers) > 1 or value[: len(_SCHEME)].lower() != _SCHEME:
            raise AuthenticationFailed("authorization must be given once, as Bearer TOKEN")
        name = tokens.name_of(value[len(_SCHEME) :].strip())
        if name is None:
            raise AuthenticationFailed("the token is not known here: mistyped, for another server, or revoked")
        return name


def _presented(context: Any) -> Presented:
    """What a gRPC call brings."""
    facts = context.auth_context()
    return Presented(
        context.peer(),
        tuple(str(value) for key, value in context.invocation_metadata() or () if key == "authorization"),
        tuple(
            name.decode("utf-8", "replace")
            for key in ("x509_common_name", "x509_subject_alternative_name")
            for name in facts.get(key, ())
        ),
    )


def identity_of(peer: str) -> str:
    """Who a caller without credentials is taken for, from gRPC's name of the peer: its host, so that more connections buy
    nothing. On this machine, where everybody has the same one, the connection."""
    kind, _, rest = peer.partition(":")
    host = unquote(rest.rpartition(":")[0]).strip("[]")
    if kind not in ("ipv4", "ipv6") or not host or host == "::1" or host.startswith(("127.", "::ffff:127.")):
        return peer
    return host


class Authentication(grpc.aio.ServerInterceptor):
    """Every call of every service passes the guard, those of later services too; only OPEN_SERVICES do not."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or details.method.split("/")[1] in OPEN_SERVICES:
            return handler
        return wrapped(handler, self._identified)

    @asynccontextmanager
    async def _identified(self, _request: Any, context: Any) -> AsyncIterator[None]:
        async with answering(context):
            handling(self._guard.identity(_presented(context)))
        yield
