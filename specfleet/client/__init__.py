"""The SDK: `Client` for programs, `AsyncClient` for asyncio. Needs grpcio and protobuf only."""

from specfleet.client.asynchronous import AsyncClient
from specfleet.client.reply import Health, Reply, Timing
from specfleet.client.stream import AsyncStream
from specfleet.client.sync import Client, Stream
from specfleet.wire.tls import Tls

__all__ = ["AsyncClient", "AsyncStream", "Client", "Health", "Reply", "Stream", "Timing", "Tls"]
