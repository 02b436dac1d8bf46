"""A gRPC server with health and reflection: "" answers whether the process lives, a service's name whether it is ready."""

from __future__ import annotations

import asyncio
import socket

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from specfleet.core.address import is_loopback
from specfleet.core.config import DaemonConfig
from specfleet.core.errors import ConfigurationError
from specfleet.core.generation import Generator
from specfleet.core.trace import Tracer
from specfleet.v1 import generation_pb2_grpc, verification_pb2_grpc
from specfleet.wire import generation, verification
from specfleet.wire.auth import Authentication, Guard, TokenFile
from specfleet.wire.channel import OPTIONS, check_target
from specfleet.wire.drain import Calls
from specfleet.wire.interceptors import Decoding
from specfleet.wire.tls import ServerCertificate

MAX_CALLS = 4096
"""Calls at a time, streams that have not opened a session included; more are refused with RESOURCE_EXHAUSTED."""

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *OPTIONS,
    # Accept the pings that our clients send (channel.py), even on an idle connection.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    # Streams of one connection; a drafter has one per generation, and the verifier's own limit comes first.
    ("grpc.max_concurrent_streams", MAX_CALLS),
    # A port in use is an error, not a second listener.
    ("grpc.so_reuseport", 0),
)

ANYBODY = Guard()
TELL_SECONDS = 2.0
"""How long those that must move may take to hear of it."""


class Server:
    """One listening gRPC server. `bind`, add services, `start()`, `ready(True)`, later `drain(seconds)`."""

    def __init__(
        self,
        interceptors: tuple[grpc.aio.ServerInterceptor, ...] = (),
        guard: Guard = ANYBODY,
        certificate: ServerCertificate | None = None,
        *,
        insecure: bool = False,
    ) -> None:
        """`insecure`: plaintext on an address that other machines reach is meant."""
        self._certificate = certificate
        self._insecure = insecure
        self._calls = Calls()
        interceptors = (*interceptors, self._calls, Authentication(guard), Decoding())
        self._server = grpc.aio.server(
            interceptors=interceptors, options=SERVER_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS
        )
        self._health = health.aio.HealthServicer()
        self._names: list[str] = []
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def add_verification(self, backend: verification.VerificationBackend, tracer: Tracer | None = None) -> None:
        service = verification.VerificationService(backend, tracer)
        verification_pb2_grpc.add_VerificationServiceServicer_to_server(service, self._server)
        self._names.append(verification.SERVICE)

    def add_generation(self, generator: Generator) -> None:
        service = generation.GenerationService(generator)
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(service, self._server)
        self._names.append(generation.SERVICE)

    def bind(self, listen: str) -> str:
        """Take HOST:PORT (port 0: any free one); returns the address with the real port. Call it before what takes long: a
        port in use must not cost the time in which a model is loaded.

        Raises:
            ConfigurationError: naming the address; also for plaintext where other machines could listen in.
        """
        check_listen(listen, encrypted=self._certificate is not None, insecure=self._insecure)
        # Bind once with a plain socket: gRPC's own failure says nothing of the reason, and prints lines of its own.
        bound(listen).close()
        host = listen.rpartition(":")[0]
        if self._certificate is None:
            return f"{host}:{self._server.add_insecure_port(listen)}"
        return f"{host}:{self._server.add_secure_port(listen, self._certificate.credentials())}"

    async def start(self) -> None:
        """Answer calls: alive, not ready yet."""
        reflection.enable_server_reflection((*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self.ready(False)
        await self._server.start()
        await self._set("", True)

    async def ready(self, ready: bool) -> None:
        for name in self._names:
            await self._set(name, ready)

    async def drain(self, seconds: float) -> None:
        """Not ready from now on, and no new calls; those that run have `seconds` to finish, the rest are told to move."""
        await self._health.enter_graceful_shutdown()
        closing = asyncio.create_task(self._server.stop(seconds + TELL_SECONDS))
        await self._calls.finish(seconds)
        await closing

    async def stop(self, grace: float) -> None:
        """Refuse new calls, let running ones finish within `grace` seconds, and cut off the rest."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)

    async def _set(self, name: str, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)


def trusting(trust: DaemonConfig) -> tuple[Guard, ServerCertificate | None]:
    """What a daemon's settings mean: whom it lets in, and what it shows them. Raises ConfigurationError naming a file."""
    tokens = TokenFile(trust.tokens) if trust.tokens is not None else None
    guard = Guard(tokens, trust.tls_client_ca is not None, frozenset(trust.allow))
    if trust.tls_cert is None or trust.tls_key is None:
        return guard, None
    return guard, ServerCertificate(trust.tls_cert, trust.tls_key, trust.tls_client_ca)


def check_listen(listen: str, *, encrypted: bool, insecure: bool) -> None:
    """Raises ConfigurationError for what is no HOST:PORT, and for plaintext where other machines could listen in, unless
    `insecure` says that it is meant."""
    check_target(listen)
    if not encrypted and not insecure and not is_loopback(listen):
        raise ConfigurationError(
            f"{listen} can be reached from other machines, and nothing would be encrypted; give --tls-cert and --tls-key "
            "(specfleet certs makes some), listen on 127.0.0.1, or say --insecure if plaintext is meant"
        )


def bound(listen: str) -> socket.socket:
    """A TCP socket bound to HOST:PORT, not listening yet. Raises ConfigurationError naming the address."""
    host, _, port = listen.rpartition(":")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {listen}: {(error.strerror or str(error)).lower()}; "
            f"choose another address, or port 0 for any free port"
        ) from None
    return taken
