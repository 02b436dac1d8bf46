"""A verifier's end of the wire with any behaviour on order, behind a real gRPC server of this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from specfleet.core.protocol import ServerStream
from specfleet.core.types import Load, ModelInfo
from specfleet.wire.server import Server
from specfleet.wire.verification import GrpcVerifierConnection

MODEL = ModelInfo("tiny", 100, b"digest", 512, (0, 7), "specfleet 0", "fixed:4")
Serve = Callable[[ServerStream], Awaitable[None]]


async def _nothing(stream: ServerStream) -> None:
    pass


class Backend:
    """Serves streams with `serve`; `fault` is raised by the unary calls."""

    def __init__(
        self, serve: Serve = _nothing, fault: Exception | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        self._serve = serve
        self.fault = fault
        self.files = dict(files or {})

    async def serve(self, stream: ServerStream, peer: str) -> None:
        await self._serve(stream)

    def model(self) -> ModelInfo:
        self._fail()
        return MODEL

    def load(self) -> Load:
        self._fail()
        return Load(1, 2, 3, 0.5)

    def tokenizer_files(self) -> Mapping[str, bytes]:
        self._fail()
        return self.files

    def _fail(self) -> None:
        if self.fault is not None:
            raise self.fault


@asynccontextmanager
async def serving(backend: Backend, *interceptors: object) -> AsyncIterator[tuple[Server, str]]:
    """The backend behind a server, and its address."""
    server = Server(interceptors=interceptors)  # type: ignore[arg-type]
    address = server.bind("127.0.0.1:0")
    server.add_verification(backend)
    await server.start()
    await server.ready(True)
    try:
        yield server, address
    finally:
        await server.stop(0.0)


@asynccontextmanager
async def connected(backend: Backend) -> AsyncIterator[GrpcVerifierConnection]:
    """A connection to the backend over a real channel."""
    async with serving(backend) as (_, address):
        connection = GrpcVerifierConnection(address)
        try:
            yield connection
        finally:
            await connection.close()
