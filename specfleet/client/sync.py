"""The blocking SDK: every call runs `AsyncClient`'s on the portal's thread."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

from specfleet.client.asynchronous import AsyncClient
from specfleet.client.portal import Portal, portal
from specfleet.client.reply import Health, Reply, Timing
from specfleet.client.request import Message, Parameters, Prompt
from specfleet.client.stream import AsyncStream
from specfleet.core.generation import Started, Tokens
from specfleet.core.types import FinishReason, ModelInfo, SamplingParams, Speculation, Usage
from specfleet.wire.credentials import Token
from specfleet.wire.tls import TlsSource


class Stream:
    """Iterate for `Tokens`; afterwards `usage`, `speculation`, `finish_reason`, `timing`, `reply`. See AsyncStream."""

    def __init__(self, stream: AsyncStream, portal: Portal) -> None:
        self._stream = stream
        self._portal = portal

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Tokens:
        event = self._portal.call(self._stream.next_event())
        if event is None:
            raise StopIteration
        return event

    def cancel(self) -> None:
        """Stop the generation, here and on the server; from any thread. Harmless when it has ended."""
        self._portal.call(self._stream.cancel())

    @property
    def request_id(self) -> str:
        return self._stream.request_id

    @property
    def server(self) -> Started:
        return self._stream.server

    @property
    def finish_reason(self) -> FinishReason | None:
        """None while it runs."""
        return self._stream.finish_reason

    @property
    def text(self) -> str:
        """All text so far."""
        return self._stream.text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self._stream.token_ids

    @property
    def usage(self) -> Usage:
        return self._stream.usage

    @property
    def speculation(self) -> Speculation:
        return self._stream.speculation

    @property
    def timing(self) -> Timing:
        return self._stream.timing

    @property
    def reply(self) -> Reply:
        """What there is by now; whole once `finish_reason` is set."""
        return self._stream.reply


class Client:
    """Generations from the first of several servers that answers. Safe to share between threads. See AsyncClient."""

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
        """As AsyncClient's. Raises ConfigurationError."""
        self._client = AsyncClient(
            targets,
            timeout=timeout,
            connect_timeout=connect_timeout,
            retries=retries,
            resume_timeout=resume_timeout,
            token=token,
            tls=tls,
            insecure=insecure,
        )
        self._portal = portal()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def stream(
        self,
        prompt: Prompt | None = None,
        sampling: SamplingParams | None = None,
        *,
        messages: Sequence[Message] | None = None,
        timeout: float | None = None,
        **parameters: Unpack[Parameters],
    ) -> Stream:
        """A generation to iterate over; it begins with the first iteration. Use it in `with`. Raises InvalidRequest."""
        stream = self._client.stream(
            prompt,
            sampling,
            messages=messages,
            timeout=timeout,
            **parameters,
        )
        return Stream(stream, self._portal)

    def generate(
        self,
        prompt: Prompt | None = None,
        sampling: SamplingParams | None = None,
        *,
        messages: Sequence[Message] | None = None,
        timeout: float | None = None,
        **parameters: Unpack[Parameters],
    ) -> Reply:
        """A whole generation; arguments as in `stream`. Raises the typed error of a generation that failed."""
        return self._portal.call(
            self._client.generate(
                prompt,
                sampling,
                messages=messages,
                timeout=timeout,
                **parameters,
            )
        )

    def chat(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        **parameters: Unpack[Parameters],
    ) -> Reply:
        """The assistant's next message; the server applies the model's chat template."""
        return self.generate(
            None,
            sampling,
            messages=messages,
            timeout=timeout,
            **parameters,
        )

    def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """What the reachable servers serve, each model once."""
        return self._portal.call(self._client.models(timeout=timeout))

    def health(self, *, timeout: float | None = None) -> list[Health]:
        """Every server's state, in the order given. An unreachable one is an answer, not an error."""
        return self._portal.call(self._client.health(timeout=timeout))

    def close(self) -> None:
        """Close all connections; running streams end with an error. Closing twice is harmless."""
        self._portal.call(self._client.close())
