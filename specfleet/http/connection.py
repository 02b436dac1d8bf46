"""A connection of uvicorn's with what a public server needs beside: heads in time, dead peers found, certificates' names."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from specfleet.wire.generation import IDLE_SECONDS
from specfleet.wire.server import MAX_CALLS

HEAD_SECONDS = 20.0
"""For a request's head to arrive, from the connection's or its own first byte."""
PROBE_SECONDS = 10
"""A silent peer is probed as often as gRPC's keepalive does, and given up likewise."""


class Connection(H11Protocol):
    """Requests find in their state: `certificate`, the names in the caller's; `abort`, which ends the connection at once."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CALLS:
            transport.abort()
            return
        _find_dead_peers(transport.get_extra_info("socket"))
        self.app_state = {"certificate": _names(transport.get_extra_info("peercert")), "abort": transport.abort}
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            if self._waiting is None and self.timeout_keep_alive_task is None:
                self._expect_head()  # of the next request, whose first bytes these are
        elif self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.abort)


def _names(certificate: dict[str, Any] | None) -> tuple[str, ...]:
    """Common name first, then alternative names, of a certificate that the handshake has checked."""
    if not certificate:
        return ()
    subject = [pair for part in certificate.get("subject", ()) for pair in part]
    common = [value for key, value in subject if key == "commonName"]
    return (*common, *(value for _, value in certificate.get("subjectAltName", ())))


def _find_dead_peers(connection: socket.socket | None) -> None:
    """Where the system can: silence is probed, and what nobody confirms to have got does not wait for minutes."""
    options = {"TCP_KEEPIDLE": PROBE_SECONDS, "TCP_KEEPINTVL": PROBE_SECONDS // 2, "TCP_KEEPCNT": 2}
    if connection is None:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {**options, "TCP_USER_TIMEOUT": int(IDLE_SECONDS * 1000)}.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
