"""Channels: one set of options for everyone who calls a specfleet server."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from specfleet.core.address import is_address
from specfleet.core.errors import ConfigurationError
from specfleet.wire.credentials import PLAIN, Credentials
from specfleet.wire.tls import Tls

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""A prompt of a million tokens is about 3 MB."""

RETIRED_SECONDS = 24 * 3600.0
"""How long calls may go on over a connection that was made with certificates of before."""

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


def open_channel(target: str, tls: Tls | None = None) -> grpc.aio.Channel:
    """A channel to HOST:PORT, over TLS where told how. It connects when first used."""
    if tls is None:
        return grpc.aio.insecure_channel(check_target(target), options=OPTIONS)
    return grpc.aio.secure_channel(check_target(target), tls.credentials(), options=OPTIONS)


class Dialer:
    """The channel to one target, and its successor once the caller's certificates have changed. Belongs to the event loop it
    is first used in."""

    def __init__(self, target: str, credentials: Credentials = PLAIN) -> None:
        """Raises ConfigurationError for what is not HOST:PORT, and where plaintext would leave this machine."""
        self.target = check_target(target)
        credentials.check(target)
        self._credentials = credentials
        self._tls: Tls | None = None
        self._channel: grpc.aio.Channel | None = None
        self._retired: set[asyncio.Task[None]] = set()

    def channel(self) -> grpc.aio.Channel:
        """For the next call. Calls that run on an earlier channel end there."""
        tls = self._credentials.present_tls()
        if self._channel is not None and tls == self._tls:
            return self._channel
        if self._channel is not None:
            retired = asyncio.create_task(self._channel.close(RETIRED_SECONDS))
            self._retired.add(retired)
            retired.add_done_callback(self._retired.discard)
        self._tls = tls
        self._channel = open_channel(self.target, tls)
        return self._channel

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        return self._credentials.metadata()

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        for retired in self._retired:
            retired.cancel()
        await asyncio.gather(*self._retired, return_exceptions=True)
        if channel is not None:
            await channel.close(None)
