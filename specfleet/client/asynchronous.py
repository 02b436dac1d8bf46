# ruff: noqa: ASYNC109 (these timeouts become deadlines that travel with the call)
"""The SDK for asyncio. The blocking `Client` is this one behind a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

from specfleet.client.connection import Connection, connections
from specfleet.client.reply import Health, Reply
from specfleet.client.request import Message, Parameters, Prompt, build_request
from specfleet.client.stream import AsyncStream, Patience
from specfleet.core.errors import SpecfleetError
from specfleet.core.types import ModelInfo, SamplingParams
from specfleet.wire.credentials import Credentials, Token
from specfleet.wire.tls import TlsSource

_SHUN_SECONDS = 10.0
"""How long a server that failed is tried last."""


class AsyncClient:
    """Generations from the first of several servers that answers.

    One client belongs to one event loop and serves any number of streams at once. `timeout` (seconds) bounds a whole call
    with its retries; every call may give its own.
    """

    def __init__(
        self,
        targets: str | Sequence[str],
        *,
        timeout: float = 60.0,
        connect_timeout: float = 5.0,
        retries: int = 2,
        resume_timeout: float = 60.0,
        token: Token | None = None,
        tls: TlsSource | None = None,
        insecure: bool = False,
    ) -> None:
        """`targets`: HOST:PORT or several of them, tried in order. Nothing is connected yet.

        `retries`: further rounds over all servers before the first token. `resume_timeout`: seconds in which a broken
        stream may find another server. `token`: a bearer token, or a callable that gives one. `tls`: `Tls(…)` with the
        authority to trust and, for mTLS, a certificate; or a callable that gives one, asked for every call, so that
        certificates may change. `insecure`: plaintext to other machines is meant. Raises ConfigurationError.
        """
        self._patience = Patience(timeout, connect_timeout, retries, resume_timeout)
        self._servers = connections(targets, Credentials(token, tls, insecure))
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def stream(
        self,
        prompt: Prompt | None = None,
        sampling: SamplingParams | None = None,
        *,
        messages: Sequence[Message] | None = None,
        timeout: float | None = None,
        **parameters: Unpack[Parameters],
    ) -> AsyncStream:
        """A generation to iterate over; it begins with the first iteration. Use it in `async with`.

        Give a prompt (text or token ids) or `messages`; `parameters` are fields of SamplingParams, and
        `model`, `service_class`, `request_id`, and `target_only`. Raises InvalidRequest.
        """
        self._check_open()
        request = build_request(
            prompt,
            messages,
            sampling,
            parameters,
        )
        return AsyncStream(self._by_health(), request, self._patience.within(timeout))

    async def generate(
        self,
        prompt: Prompt | None = None,
        sampling: SamplingParams | None = None,
        *,
        messages: Sequence[Message] | None = None,
        timeout: float | None = None,
        **parameters: Unpack[Parameters],
    ) -> Reply:
        """A whole generation; arguments as in `stream`. Raises the typed error of a generation that failed."""
        stream = self.stream(
            prompt,
            sampling,
            messages=messages,
            timeout=timeout,
            **parameters,
        )
        async with stream:
            async for _ in stream:
                pass
            return stream.reply

    async def chat(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        **parameters: Unpack[Parameters],
    ) -> Reply:
        """The assistant's next message; the server applies the model's chat template."""
        return await self.generate(
            None,
            sampling,
            messages=messages,
            timeout=timeout,
            **parameters,
        )

    async def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """What the reachable servers serve, each model once. Raises what the last one failed with when none answers."""
        self._check_open()
        limits = self._patience.within(timeout)
        asked = (one.model(connect_within=limits.reach, within=limits.timeout) for one in self._servers)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        found: dict[str, ModelInfo] = {}
        for answer in answers:
            if isinstance(answer, ModelInfo):
                found.setdefault(answer.name, answer)
            elif not isinstance(answer, SpecfleetError) or not any(isinstance(one, ModelInfo) for one in answers):
                raise answer
        return list(found.values())

    async def health(self, *, timeout: float | None = None) -> list[Health]:
        """Every server's state, in the order given. An unreachable one is an answer, not an error."""
        self._check_open()
        limits = self._patience.within(timeout)
        return await asyncio.gather(
            *(one.health(connect_within=limits.reach, within=limits.timeout) for one in self._servers)
        )

    async def close(self) -> None:
        """Close all connections; running streams end with an error. Closing twice is harmless."""
        self._closed = True
        await asyncio.gather(*(server.close() for server in self._servers))

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this client is closed; make a new one")

    def _by_health(self) -> list[Connection]:
        """In the order given, those that have just failed last."""
        horizon = time.perf_counter() - _SHUN_SECONDS
        return sorted(self._servers, key=lambda server: server.failed_at > horizon)
