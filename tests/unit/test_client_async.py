"""AsyncClient against real gRPC servers of this process: streams, retries, resumption, deadlines, cancellation."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from specfleet import (
    AsyncClient,
    ChatMessage,
    ConfigurationError,
    ConnectionError_,
    DeadlineExceeded,
    FinishReason,
    InvalidRequest,
    Overloaded,
    QuotaExceeded,
    SamplingParams,
    StreamInterrupted,
    Tls,
    Unavailable,
    Usage,
)
from specfleet.core.generation import Event, GenerationRequest, Started
from specfleet.v1 import generation_pb2_grpc
from specfleet.wire.generation import GenerationService
from support.generation import KINDS, Counter, serving, serving_process, text_of

pytestmark = pytest.mark.asyncio


@contextmanager
def silent_port() -> Iterator[str]:
    """An address that accepts connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


async def test_a_reply_has_everything() -> None:
    """generate() returns text, ids, usage, speculation, timing, and who answered."""
    counter = Counter()
    async with serving(counter) as address, AsyncClient(address) as client:
        reply = await client.generate("once", SamplingParams(max_tokens=5, logprobs=True), service_class="gold")

    assert text_of(5) + "!" == reply.text
    assert reply.token_ids == (0, 1, 2, 3, 4)
    assert (FinishReason.LENGTH, Usage(4, 5, 1)) == (reply.finish_reason, reply.usage)
    assert (
        reply.speculation.rounds,
        reply.speculation.drafted,
        reply.speculation.accepted,
        reply.speculation.resumes,
    ) == (1, 4, 3, 0)
    assert reply.logprobs == (0.0, -1.0, -2.0, -3.0, -4.0)
    assert (
        reply.server.model,
        reply.server.policy,
        reply.server.verifier,
        reply.server.drafter,
    ) == ("counting", "fixed:4", "fake verifier", "counter")
    assert counter.requests[0].service_class == "gold"
    assert reply.server.request_id == counter.requests[0].request_id != ""


async def test_reply_as_json_has_the_documented_fields() -> None:
    """to_dict() is the object of `specfleet generate --json`, name for name."""
    async with serving(Counter()) as address, AsyncClient(address) as client:
        found = (await client.generate("once", max_tokens=3)).to_dict()

    assert list(found) == ["text", "token_ids", "finish_reason", "usage", "timing", "speculation", "server"]
    assert list(found["usage"]) == ["prompt_tokens", "completion_tokens", "cached_tokens"]
    assert list(found["timing"]) == ["ttft_s", "tpot_s", "total_s"]
    assert found["speculation"] == {
        "rounds": 1,
        "drafted": 4,
        "accepted": 3,
        "target_only_tokens": 0,
        "resumes": 0,
        "modes": {"local": 0, "stream": 0, "round": 1},
        "lengths": [4],
        "acceptance_rate": 0.75,
        "mean_accepted_length": 4.0,
    }
    assert found["server"] == {
        "drafter": "counter",
        "verifier": "fake verifier",
        "model": "counting",
        "policy": "fixed:4",
    }


async def test_events_come_as_they_are_made() -> None:
    """Each event has text, ids and kind; the first is there long before the last; timing says so."""
    async with (
        serving(Counter(delay=0.02)) as address,
        AsyncClient(address) as client,
        client.stream("once", max_tokens=10) as stream,
    ):
        first = await anext(stream)
        after_first = stream.timing
        rest = [event async for event in stream]

    assert ("0 ", (0,), 1, KINDS[0]) == (first.text, first.token_ids, first.accepted, first.kind)
    assert list(KINDS[1:]) + list(KINDS) == [event.kind for event in rest if event.token_ids]
    assert text_of(10) + "!" == stream.text
    assert after_first.total_s < 0.1 < stream.timing.total_s
    assert stream.timing.ttft_s == pytest.approx(after_first.ttft_s)
    assert stream.timing.tpot_s == pytest.approx((stream.timing.total_s - stream.timing.ttft_s) / 9)


async def test_prompts_messages_and_parameters_reach_the_server() -> None:
    """Text, ids and messages, SamplingParams and single parameters (which outrank them) arrive as they were given."""
    counter = Counter()
    async with serving(counter) as address, AsyncClient(address) as client:
        await client.generate("text", max_tokens=1, stop="x")
        await client.generate([4, 5], SamplingParams(max_tokens=9, seed=3), max_tokens=2, model="counting")
        await client.chat([{"role": "user", "content": "hi"}, ChatMessage("assistant", "yes")], max_tokens=1)

    text, ids, chat = counter.requests
    assert (text.prompt, text.sampling.stop, text.sampling.max_tokens) == ("text", ("x",), 1)
    assert (ids.prompt_token_ids, ids.sampling.max_tokens, ids.sampling.seed, ids.model) == ((4, 5), 2, 3, "counting")
    assert (ChatMessage("user", "hi"), ChatMessage("assistant", "yes")) == chat.chat


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "x", "temperature": -1.0}, "temperature: is -1.0, must be between 0 and 100"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens: is 0, must be at least 1"),
        ({"prompt": ""}, "prompt: is empty"),
        ({}, "exactly one of prompt, chat and token ids"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "y"}]}, "exactly one of"),
        ({"messages": [{"role": "user"}]}, r"has \['role'\], each must have role and content"),
        ({"prompt": "x", "timeout": 0.0}, "timeout: is 0.0, must be a finite number of seconds above 0"),
    ],
)
async def test_bad_requests_fail_before_anything_is_sent(arguments: dict[str, Any], message: str) -> None:
    """What no server would take is InvalidRequest at once, without a connection."""
    async with AsyncClient(closed_port()) as client:
        with pytest.raises(InvalidRequest, match=message):
            client.stream(**arguments)


@pytest.mark.parametrize("targets", ["localhost", "localhost:99999", [], ["localhost:1", "b"]])
async def test_targets_are_checked(targets: Any) -> None:
    """A target that is not HOST:PORT is a ConfigurationError that shows a right one."""
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        AsyncClient(targets)


async def test_nobody_there_is_a_connection_error() -> None:
    """A port where nothing listens fails within a second, naming the address and what to check."""
    begun = time.monotonic()
    async with AsyncClient(closed_port()) as client:
        with pytest.raises(ConnectionError_, match=r"cannot reach 127\.0\.0\.1:\d+: .*is it running there"):
            await client.generate("x")
    assert time.monotonic() - begun < 3.0


async def test_a_server_that_never_answers_is_a_connection_error() -> None:
    """A port that accepts and says nothing costs connect_timeout, not the whole timeout."""
    with silent_port() as address:
        async with AsyncClient(address, connect_timeout=0.2, retries=0) as client:
            with pytest.raises(ConnectionError_, match=r"no answer within 0\.2 s"):
                await client.generate("x")


async def test_the_next_target_is_tried() -> None:
    """Targets are tried in order; one that failed is then tried last, so that it costs its wait only once."""
    counter = Counter()
    with silent_port() as silent:
        async with (
            serving(counter) as address,
            AsyncClient([silent, address], retries=0, connect_timeout=1.0) as client,
        ):
            assert text_of(2) + "!" == (await client.generate("x", max_tokens=2)).text
            begun = time.monotonic()
            await client.generate("x", max_tokens=2)
    assert time.monotonic() - begun < 0.8
    assert len(counter.requests) == 2


async def test_all_dead_names_all() -> None:
    """When no target answers, the error names every one."""
    targets = [closed_port(), closed_port()]
    async with AsyncClient(targets, retries=0) as client:
        with pytest.raises(ConnectionError_, match=f"none of {targets[0]}, {targets[1]} can be reached"):
            await client.generate("x")


async def test_unavailable_is_retried_before_the_first_token() -> None:
    """A server that is not ready yet is asked again; that is a retry, not a resume."""
    counter = Counter(faults={0: Unavailable("starting")})
    async with serving(counter) as address, AsyncClient(address) as client:
        reply = await client.generate("x", max_tokens=2)

    assert text_of(2) + "!" == reply.text
    assert reply.speculation.resumes == 0
    assert [request.output_token_ids for request in counter.requests] == [(), ()]


@pytest.mark.parametrize("error", [Overloaded("full", retry_after=1.5), QuotaExceeded("yours"), InvalidRequest("bad")])
async def test_refusals_are_not_retried(error: Exception) -> None:
    """Only 'unavailable' is retried; other refusals come through typed, with retry_after."""
    counter = Counter(faults={0: error})  # type: ignore[dict-item]
    async with serving(counter) as address, AsyncClient(address) as client:
        with pytest.raises(type(error), match=str(error)) as found:
            await client.generate("x")

    assert getattr(error, "retry_after", None) == found.value.retry_after  # type: ignore[attr-defined]
    assert len(counter.requests) == 1


async def test_retries_are_bounded() -> None:
    """A server that stays unavailable is asked retries + 1 times."""
    counter = Counter()

    async def refuse(request: GenerationRequest) -> AsyncIterator[Event]:
        counter.requests.append(request)
        raise Unavailable("draining", retry_after=0.01)
        yield Started()  # makes it a generator

    counter.generate = refuse  # type: ignore[method-assign]
    async with serving(counter) as address, AsyncClient(address, retries=3) as client:
        with pytest.raises(Unavailable, match="draining"):
            await client.generate("x")
    assert len(counter.requests) == 4


@pytest.mark.parametrize("fault", [Unavailable("draining"), StreamInterrupted("lost it"), "end"])
@pytest.mark.parametrize("at", [1, 5])
async def test_a_broken_stream_is_resumed(fault: Any, at: int) -> None:
    """A stream that breaks midway goes on at the next target, behind the tokens received: one text, one resume."""
    first, second = Counter("first", {at: fault}), Counter("second")
    async with serving(first) as a, serving(second) as b, AsyncClient([a, b]) as client:
        reply = await client.generate("x", max_tokens=8)

    assert text_of(8) + "!" == reply.text
    assert tuple(range(8)) == reply.token_ids
    assert reply.speculation.resumes == 1
    assert reply.server.drafter == "second"
    assert tuple(range(at)) == second.requests[0].output_token_ids
    assert second.requests[0].model == "counting"


async def test_a_killed_server_is_survived() -> None:
    """The process behind a stream dies; the text goes on through another one, whole."""
    second = Counter("second")
    with serving_process("3:die") as first:
        async with serving(second) as b, AsyncClient([first, b]) as client:
            reply = await client.generate("x", max_tokens=6)

    assert text_of(6) + "!" == reply.text
    assert (reply.speculation.resumes, second.requests[0].output_token_ids) == (1, (0, 1, 2))


async def test_a_restarted_server_is_found_again() -> None:
    """With one target only, the client waits for it to come back, and resumes there."""
    async with AsyncClient(address := closed_port()) as client, client.stream("x", max_tokens=30) as stream:
        async with serving(Counter(delay=0.01), address):
            for _ in range(3):
                await anext(stream)
        await asyncio.sleep(0.3)
        async with serving(Counter(), address):
            async for _ in stream:
                pass

    assert text_of(30) + "!" == stream.text
    assert stream.speculation.resumes == 1


async def test_the_end_is_not_shown_twice() -> None:
    """A stream that breaks between its last text and `Completed` repeats neither ids nor text."""
    first, second = Counter("first"), Counter("second")
    whole = first.generate

    async def without_end(request: GenerationRequest) -> AsyncIterator[Event]:
        events = [event async for event in whole(request)]
        for event in events[:-1]:
            yield event

    first.generate = without_end  # type: ignore[method-assign]
    async with serving(first) as a, serving(second) as b, AsyncClient([a, b]) as client:
        reply = await client.generate("x", max_tokens=3)

    assert text_of(3) + "!" == reply.text


async def test_another_model_cannot_go_on() -> None:
    """A server that refuses to go on (another model, say) is passed over while resuming."""
    first, second = Counter("first", {2: Unavailable("gone")}), Counter("second")
    second.faults = {2: InvalidRequest("model 'counting' is not served here")}
    async with serving(first) as a, serving(second) as b, AsyncClient([a, b]) as client:
        reply = await client.generate("x", max_tokens=4)

    assert text_of(4) + "!" == reply.text
    assert len(first.requests) == 2


async def test_unresumable_streams_are_interrupted() -> None:
    """When nobody can go on within resume_timeout, StreamInterrupted says how far it came and why it stopped."""
    with serving_process("2:die") as address:
        async with AsyncClient(address, resume_timeout=0.3) as client, client.stream("x", max_tokens=9) as stream:
            with pytest.raises(
                StreamInterrupted, match=r"broke after 2 tokens and could not be resumed: cannot reach"
            ) as e:
                async for _ in stream:
                    pass

    assert e.value.details == {"completion_tokens": "2"}
    assert stream.request_id == e.value.request_id
    assert FinishReason.ERROR is stream.finish_reason
    assert stream.reply.text == "0 1 "


async def test_the_deadline_bounds_everything() -> None:
    """A generation that hangs ends with DeadlineExceeded, which is a TimeoutError, at the call's own timeout."""
    counter = Counter(faults={2: "hang"})
    async with serving(counter) as address, AsyncClient(address) as client:
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match=r"out of time after 0\.3 s and 2 tokens") as found:
            await client.generate("x", timeout=0.3)
        assert 0.2 < time.monotonic() - begun < 2.0
        assert isinstance(found.value, DeadlineExceeded)
        await asyncio.sleep(0.1)
        assert counter.closed == 1


async def test_the_deadline_bounds_retries() -> None:
    """Retrying never outlasts the timeout, whatever the server says about coming back."""
    counter = Counter(faults={0: Unavailable("later", retry_after=30.0)})
    async with serving(counter) as address, AsyncClient(address, timeout=0.3) as client:
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await client.generate("x")
    assert time.monotonic() - begun < 2.0


async def test_cancel_stops_both_sides() -> None:
    """cancel() from another task ends the iteration quietly, and the server's generation with it."""
    counter = Counter(faults={2: "hang"})
    async with serving(counter) as address, AsyncClient(address) as client:
        async with client.stream("x") as stream:
            asyncio.get_running_loop().call_later(0.2, lambda: asyncio.ensure_future(stream.cancel()))
            events = [event async for event in stream]
        await asyncio.sleep(0.1)
        assert counter.closed == 1

    assert len(events) == 2
    assert (stream.finish_reason, stream.usage.completion_tokens) == (FinishReason.CANCELLED, 2)


async def test_leaving_the_block_cancels() -> None:
    """Leaving `async with` early, or being cancelled inside, frees the server at once."""
    counter = Counter(delay=0.01)
    async with serving(counter) as address, AsyncClient(address) as client:
        async with client.stream("x", max_tokens=500) as stream:
            await anext(stream)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.generate("x", max_tokens=500)
        await asyncio.sleep(0.1)
        assert counter.closed == 2
    assert FinishReason.CANCELLED is stream.finish_reason


async def test_close_is_idempotent_and_final() -> None:
    """close() may be called twice; a closed client says so."""
    client = AsyncClient(closed_port())
    await client.close()
    await client.close()

    with pytest.raises(RuntimeError, match="closed; make a new one"):
        client.stream("x")


async def test_models_and_health() -> None:
    """models() is what reachable servers serve, each once; health() tells live, ready and unreachable apart."""
    dead = closed_port()
    async with serving(Counter()) as a, serving(Counter()) as b, AsyncClient([a, dead, b]) as client:
        models = await client.models()
        health = await client.health()

    assert [(model.name, model.context_length) for model in models] == [("counting", 512)]
    assert [(a, True, True), (dead, False, False), (b, True, True)] == [(h.target, h.live, h.ready) for h in health]
    assert "cannot reach" in health[1].message


async def test_models_of_nobody_is_an_error() -> None:
    """models() with no server at all raises the connection error."""
    async with AsyncClient(closed_port()) as client:
        with pytest.raises(ConnectionError_):
            await client.models()


async def test_not_ready_is_seen() -> None:
    """A server that is starting or draining is live, not ready."""
    from specfleet.wire.server import Server

    server = Server()
    server.add_generation(Counter())
    address = server.bind("127.0.0.1:0")
    await server.start()
    try:
        async with AsyncClient(address) as client:
            (health,) = await client.health()
    finally:
        await server.stop(0.0)

    assert (health.live, health.ready) == (True, False)
    assert "starting, draining" in health.message


async def test_tokens_travel_with_every_call() -> None:
    """A bearer token is sent as metadata; a callable is asked anew for every call."""
    seen: list[str] = []

    class Recorder(grpc.aio.ServerInterceptor):  # type: ignore[misc,type-arg]
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            seen.extend(value for key, value in details.invocation_metadata if key == "authorization")
            return await continuation(details)

    numbers = iter(range(9))
    async with _raw_server(Counter(), interceptors=[Recorder()]) as address:
        async with AsyncClient(address, token="secret") as client:
            await client.generate("x", max_tokens=1)
        async with AsyncClient(address, token=lambda: f"t{next(numbers)}") as client:
            await client.generate("x", max_tokens=1)
            await client.models()

    assert seen == ["Bearer secret", "Bearer t0", "Bearer t1"]


async def test_tokens_do_not_travel_in_the_clear() -> None:
    """Another machine is called over TLS, or with insecure=True said aloud; with a token or without."""
    for token in ("secret", None):
        with pytest.raises(ConfigurationError, match="the way to edge-7:7700 would be unencrypted"):
            AsyncClient("edge-7:7700", token=token)
    await AsyncClient("edge-7:7700", token="secret", insecure=True).close()
    await AsyncClient("localhost:7700", token="secret").close()


def certified(folder: Path) -> tuple[bytes, bytes]:
    """A key and a certificate for localhost."""
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *names],
        check=True,
        capture_output=True,
    )
    return key.read_bytes(), certificate.read_bytes()


async def test_tls_with_given_roots(tmp_path: Path) -> None:
    """With root certificates the channel is TLS, and a client without them is refused."""
    key, certificate = certified(tmp_path)
    credentials = grpc.ssl_server_credentials([(key, certificate)])
    async with _raw_server(Counter(), credentials=credentials) as address:
        target = address.replace("127.0.0.1", "localhost")
        async with AsyncClient(target, tls=Tls(certificate), token="t") as client:
            assert text_of(1) + "!" == (await client.generate("x", max_tokens=1)).text
        async with AsyncClient(target, retries=0) as client:
            with pytest.raises(ConnectionError_):
                await client.generate("x")


class _raw_server:  # noqa: N801 (a context manager)
    """A server without health, with interceptors or TLS."""

    def __init__(self, counter: Counter, interceptors: Any = (), credentials: Any = None) -> None:
        self.server = grpc.aio.server(interceptors=interceptors)  # type: ignore[attr-defined]
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationService(counter), self.server)
        listen = "127.0.0.1:0"
        self.port = (
            self.server.add_secure_port(listen, credentials) if credentials else self.server.add_insecure_port(listen)
        )

    async def __aenter__(self) -> str:
        await self.server.start()
        return f"127.0.0.1:{self.port}"

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop(0.0)
