"""Channels: one set of options for everyone who calls a specfleet server."""

from __future__ import annotations

import grpc
import grpc.aio

from specfleet.core.address import is_address
from specfleet.core.errors import ConfigurationError

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""A prompt of a million tokens is about 3 MB."""

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A dead peer is noticed within twenty seconds, by both sides; a break in the network of less than ten is sat out. Servers
    # allow pings twice as often (server.py).
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A ping that measures bandwidth may be under way when the peer dies. Keepalive then waits for that one: a minute, unless
    # told otherwise.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Reconnect promptly: our own retries are bounded by the caller's deadline.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Two channels to one address are two connections: one caller's flow control never stalls another's.
    ("grpc.use_local_subchannel_pool", 1),
)


def check_target(target: str) -> str:
    """`target` as HOST:PORT, or a ConfigurationError that says what it should look like."""
    if not is_address(target):
        raise ConfigurationError(f"address {target!r} is not HOST:PORT with a port from 0 to 65535; try localhost:7700")
    return target


def open_channel(target: str, *, root_certificates: bytes | None = None) -> grpc.aio.Channel:
    """A channel to HOST:PORT, over TLS where root certificates (PEM) are given. It connects when first used."""
    if root_certificates is None:
        return grpc.aio.insecure_channel(check_target(target), options=OPTIONS)
    credentials = grpc.ssl_channel_credentials(root_certificates)
    return grpc.aio.secure_channel(check_target(target), credentials, options=OPTIONS)
