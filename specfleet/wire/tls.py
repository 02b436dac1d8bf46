"""TLS on both ends: what a caller brings, and what a server shows. Key bytes rather than paths; files are watched."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from specfleet.core.errors import ConfigurationError
from specfleet.wire.watched import Watched, read_bytes


@dataclass(frozen=True, slots=True)
class Tls:
    """A caller's side of TLS, all of it PEM. `Tls()` trusts the public authorities that gRPC ships with."""

    root_certificates: bytes | None = None
    """Authorities whose servers are trusted."""
    certificate: bytes | None = None
    """Who this caller is, for servers that ask (mTLS): its certificate, then any in between."""
    private_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ConfigurationError("a client certificate needs its private key, and the other way round; give both")

    @classmethod
    def from_files(
        cls, ca: str | Path | None = None, certificate: str | Path | None = None, key: str | Path | None = None
    ) -> Tls:
        """Raises ConfigurationError naming the file that cannot be used."""
        if certificate is not None and key is not None:
            _check_pair(Path(certificate), Path(key))
        if ca is not None:
            _check_authority(Path(ca))
        return cls(*(None if one is None else read_bytes(Path(one)) for one in (ca, certificate, key)))

    def credentials(self) -> Any:
        return grpc.ssl_channel_credentials(self.root_certificates, self.private_key, self.certificate)


TlsSource = Tls | Callable[[], Tls]
"""How to do TLS, or what says so; asked for every call, so that certificates may change. A change opens a new connection."""


def watched_tls(ca: Path | None, certificate: Path | None, key: Path | None) -> Callable[[], Tls] | None:
    """Tls from files that are read again when they change; None where no file is named. Raises ConfigurationError."""
    paths = [path for path in (ca, certificate, key) if path is not None]
    return Watched(paths, lambda: Tls.from_files(ca, certificate, key)).get if paths else None


class ServerCertificate:
    """What a server shows its callers, and whom it asks for certificates, from files that may change while it serves.

    With `client_ca`, callers without a certificate of that authority do not get through the handshake.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        """Raises ConfigurationError naming the file that cannot be used."""
        self.mutual = client_ca is not None
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._paths = [path for path in (certificate, key, client_ca) if path is not None]
        self._watched = Watched(self._paths, self._read)
        self._shown = self._watched.get()

    def credentials(self) -> Any:
        """gRPC asks `_changed` at every handshake, on a thread of its own."""
        return grpc.dynamic_ssl_server_credentials(self._shown, self._changed, self.mutual)

    def context(self) -> ssl.SSLContext:
        """The same for servers that are not gRPC's; each handshake goes by the files as they are then."""
        watched = Watched(self._paths, self._context)

        def present(connection: ssl.SSLObject, _name: str | None, _first: ssl.SSLContext) -> None:
            connection.context = watched.get()

        first = watched.get()
        first.sni_callback = present  # asked at every handshake, also where the caller names no server
        return first

    def _context(self) -> ssl.SSLContext:
        _check_pair(self._certificate, self._key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._certificate, self._key)
        # Resumed sessions would pass by a change of the authority.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        if self._client_ca is not None:
            _check_authority(self._client_ca)
            context.load_verify_locations(cafile=self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _changed(self) -> Any:
        present = self._watched.get()
        if present is self._shown:
            return None
        self._shown = present
        return present

    def _read(self) -> Any:
        _check_pair(self._certificate, self._key)
        roots = None
        if self._client_ca is not None:
            _check_authority(self._client_ca)
            roots = read_bytes(self._client_ca)
        pair = (read_bytes(self._key), read_bytes(self._certificate))
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)


def _check_pair(certificate: Path, key: Path) -> None:
    """gRPC would take anything, and fail every handshake."""
    for path in (certificate, key):
        read_bytes(path)
    try:
        # A password would be asked for on the terminal; an empty one never fits.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or "not PEM"
        raise ConfigurationError(
            f"{certificate} and {key} are no certificate and its private key ({reason.lower().replace('_', ' ')}); "
            "both must be PEM, the key without a password"
        ) from None


def _check_authority(path: Path) -> None:
    read_bytes(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except (ssl.SSLError, OSError):
        raise ConfigurationError(f"{path} holds no certificates of an authority; it must be PEM") from None
