"""What a user's type checker sees. Checked by mypy --strict in test_typing.py; never run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_type

from specfleet import (
    AsyncClient,
    ChatMessage,
    Client,
    FinishReason,
    ModelInfo,
    Reply,
    SamplingParams,
    SpecfleetError,
    Speculation,
    Tls,
    Tokens,
    Usage,
    __version__,
)

assert_type(__version__, str)


def blocking() -> Iterator[str]:
    with Client("localhost:7700", timeout=60) as client:
        reply = client.generate("Once upon a time", SamplingParams(max_tokens=64, seed=7))
        assert_type(reply, Reply)
        assert_type(reply.finish_reason, FinishReason)
        with client.stream("Once upon a time", max_tokens=64, stop=["\n"]) as stream:
            for event in stream:
                assert_type(event, Tokens)
                yield event.text
            assert_type(stream.usage, Usage)
            assert_type(stream.speculation, Speculation)
        assert_type(client.chat([{"role": "user", "content": "hi"}, ChatMessage("user", "x")]).text, str)
        assert_type(client.models(), list[ModelInfo])


async def asynchronous() -> None:
    async with AsyncClient(["a:1", "b:2"], token=lambda: "t", tls=lambda: Tls.from_files("ca.pem")) as client:
        assert_type(await client.generate([1, 2, 3]), Reply)
        async with client.stream("x") as stream:
            async for event in stream:
                assert_type(event.token_ids, tuple[int, ...])
            await stream.cancel()


def errors(error: SpecfleetError) -> None:
    assert_type(error.code, str)
    assert_type(error.retry_after, float | None)


def mistakes(client: Client) -> None:
    Client("a:1", tls="ca.pem")  # type: ignore[arg-type]
    client.generate("x", max_token=64)  # type: ignore[call-arg]
    client.generate("x", max_tokens="64")  # type: ignore[arg-type]
    client.generate(3)  # type: ignore[arg-type]
    Client(7700)  # type: ignore[arg-type]
