"""A private certificate authority, as small as one can be: ECDSA P-256, one root, leaves for servers and clients."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from specfleet.core.errors import ConfigurationError

SKEW = timedelta(minutes=5)
"""Certificates are valid a little before now: clocks differ."""
COMMON_NAME_LIMIT = 64
USES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclass(frozen=True, slots=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls, name: str, days: float) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _named(name)
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        builder = (
            _dated(days)
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, folder: Path) -> Authority | None:
        """The one in `folder`; None where there is none. Raises ConfigurationError for what is no such thing."""
        certificate, key = folder / "ca.pem", folder / "ca.key"
        if not certificate.exists() and not key.exists():
            return None
        try:
            private = serialization.load_pem_private_key(key.read_bytes(), None)
            public = x509.load_pem_x509_certificate(certificate.read_bytes())
        except (OSError, ValueError, TypeError):
            raise ConfigurationError(
                f"{certificate} and {key} are no authority that can be used; choose an empty folder for a new one"
            ) from None
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise ConfigurationError(f"{key} is no ECDSA key; choose an empty folder for a new authority")
        return cls(public, private)

    def save(self, folder: Path) -> None:
        write_pair(folder, "ca", self.certificate, self.key)

    def issue(
        self, name: str, use: str, days: float, hosts: Sequence[str] = ()
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """A certificate for a "server" that is reached under `hosts` (names or addresses), or for a "client"."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _dated(days)
            .subject_name(_named(name))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([USES[use]]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_host(one) for one in hosts]), critical=False)
        return builder.sign(self.key, hashes.SHA256()), key


def write_pair(folder: Path, stem: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    """STEM.pem and STEM.key (for its owner alone). Each takes its place at once, so that who reads it never sees half."""
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _replace(folder / f"{stem}.key", private, 0o600)
    _replace(folder / f"{stem}.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _replace(path: Path, content: bytes, mode: int) -> None:
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        fresh.replace(path)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None


def _dated(days: float) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + timedelta(days=days)) - SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _named(name: str) -> x509.Name:
    if not 0 < len(name) <= COMMON_NAME_LIMIT:
        raise ConfigurationError(
            f"a certificate's name has 1 to {COMMON_NAME_LIMIT} characters, {name[:80]!r} has {len(name)}"
        )
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise ConfigurationError(f"{host!r} is neither a host name (ASCII) nor an IP address") from None
