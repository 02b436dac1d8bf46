"""A caller's credentials: how it does TLS, and the token it brings. They never show in a representation or an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from specfleet.core.address import is_loopback
from specfleet.core.errors import ConfigurationError
from specfleet.wire.tls import Tls, TlsSource
from specfleet.wire.watched import Watched, read_bytes

Token = str | Callable[[], str]
"""A bearer token, or what returns one; called for every attempt, so that it may change."""


@dataclass(frozen=True, slots=True)
class Credentials:
    token: Token | None = field(default=None, repr=False)
    tls: TlsSource | None = None
    insecure: bool = False
    """Plaintext to other machines is meant."""

    def check(self, target: str) -> None:
        """Raises ConfigurationError where the call would travel in the clear, though nobody said that it may."""
        if self.tls is None and not self.insecure and not is_loopback(target):
            raise ConfigurationError(
                f"the way to {target} would be unencrypted, and it leads to another machine; use TLS (--tls-ca, "
                "--verifier-ca), or say insecure (--insecure) where plaintext is meant"
            )

    def present_tls(self) -> Tls | None:
        return self.tls() if callable(self.tls) else self.tls

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Raises ConfigurationError, which does not show the token, where it could not travel in a header."""
        token = self.token() if callable(self.token) else self.token
        if token is None:
            return ()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigurationError("the token is empty, or holds characters that cannot be part of one")
        return (("authorization", f"Bearer {token}"),)


PLAIN = Credentials()


def token_file(path: Path | None) -> Callable[[], str] | None:
    """The token that stands in a file, read again when it changes. Raises ConfigurationError, also later."""
    if path is None:
        return None

    def read() -> str:
        token = read_bytes(path).decode("ascii", "replace").strip()
        if not token:
            raise ConfigurationError(f"{path} is empty, must hold one token")
        return token

    return Watched([path], read).get
