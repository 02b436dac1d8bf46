"""The unmodified OpenAI client against live daemons: same text as over gRPC, and everything else as its users know it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from openai import AsyncOpenAI, OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from specfleet import Client
from support.daemons import ANY_PORT, Daemon, running, start_drafter, start_verifier, wait_until_empty
from support.pair import TARGET

MODEL = "tiny-target"
PROMPT = "Once upon a time"
LONG = {"max_tokens": 1500, "extra_body": {"ignore_eos": True}}
SEEDED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "seed": 11, "max_tokens": 24}
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24}
MESSAGES: Any = [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.fixture(scope="module")
def daemons() -> Iterator[tuple[Daemon, Daemon]]:
    """A verifier and a drafter with HTTP, changing modes at random."""
    with ExitStack() as stack:
        verifier = stack.enter_context(running(start_verifier("--speculation", "random", "--http", ANY_PORT)))
        yield verifier, stack.enter_context(running(start_drafter(verifier)))


@pytest.fixture(scope="module", params=["verifier", "drafter"])
def server(request: pytest.FixtureRequest, daemons: tuple[Daemon, Daemon]) -> Daemon:
    return daemons[request.param == "drafter"]


@pytest.fixture
def client(server: Daemon) -> Iterator[OpenAI]:
    with OpenAI(base_url=base(server), api_key="none", max_retries=0, timeout=120) as one:
        yield one


def base(server: Daemon) -> str:
    return f"http://{server.said('http')}/v1"


def asynchronous(server: Daemon) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=base(server), api_key="none", max_retries=0, timeout=120)


def wait_for_sessions(verifier: Daemon, count: int) -> None:
    end = time.monotonic() + 60
    while verifier.metric("specfleet_verifier_sessions") < count:
        assert time.monotonic() < end
        time.sleep(0.02)


# --- the text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_text_and_ids_are_those_of_generate(client: OpenAI, server: Daemon, sampling: dict[str, Any]) -> None:
    """One completion through `specfleet generate`, one whole and one streamed through the OpenAI client: the same."""
    flags = [part for name, value in sampling.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [str(Path(sys.executable).parent / "specfleet"), "generate", PROMPT, "--server", server.address, "--json"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60, check=True)
    expected = json.loads(done.stdout.splitlines()[-1])

    whole = client.completions.create(model=MODEL, prompt=PROMPT, **sampling, extra_body={"return_token_ids": True})
    stream = client.completions.create(
        model=MODEL, prompt=PROMPT, **sampling, stream=True, extra_body={"return_token_ids": True}
    )
    chunks = list(stream)

    assert expected["text"] == whole.choices[0].text == "".join(chunk.choices[0].text for chunk in chunks)
    ids = [one for chunk in chunks for one in getattr(chunk.choices[0], "token_ids", ())]
    assert expected["token_ids"] == whole.choices[0].token_ids == ids  # type: ignore[attr-defined]
    assert expected["finish_reason"] == whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason
    assert whole.usage is not None
    assert expected["usage"]["prompt_tokens"] == whole.usage.prompt_tokens
    assert len(expected["token_ids"]) == whole.usage.completion_tokens
    assert {"text_completion"} == {one.object for one in (whole, *chunks)}


def test_sixteen_at_once_by_ids(server: Daemon) -> None:
    """Sixteen seeded streams of the async client, prompts as token ids: each has the text that the SDK gets."""
    with Client(server.address) as sdk:
        expected = [sdk.generate([40 + n, 41, 42], seed=n, max_tokens=16).text for n in range(16)]

    async def one(client: AsyncOpenAI, n: int) -> str:
        stream = await client.completions.create(
            model=MODEL, prompt=[40 + n, 41, 42], seed=n, max_tokens=16, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def main() -> list[str]:
        async with asynchronous(server) as client:
            return await asyncio.gather(*(one(client, n) for n in range(16)))

    assert expected == asyncio.run(main())


def test_chat(client: OpenAI, server: Daemon) -> None:
    """The model's chat template, whole and streamed; content in parts, and what the assistant said before."""
    with Client(server.address) as sdk:
        expected = sdk.chat(MESSAGES, temperature=0.0, max_tokens=16).text
        second = [*MESSAGES, {"role": "assistant", "content": expected}, {"role": "user", "content": "And 3 + 3?"}]
        answer = sdk.chat(second, temperature=0.0, max_tokens=16).text
    sampling: Any = {"temperature": 0.0, "max_completion_tokens": 16}

    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, **sampling)
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("What is", " 2 + 2?")]}]
    chunks = list(client.chat.completions.create(model=MODEL, messages=parts, stream=True, **sampling))
    said = [*MESSAGES, whole.choices[0].message.model_dump(), {"role": "user", "content": "And 3 + 3?"}]
    third = client.chat.completions.create(model=MODEL, messages=said, **sampling)

    assert expected == whole.choices[0].message.content
    assert "assistant" == whole.choices[0].message.role == chunks[0].choices[0].delta.role
    assert expected == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert answer == third.choices[0].message.content
    assert whole.id.startswith("chatcmpl-") and {whole.id} != {chunk.id for chunk in chunks}
    assert [None] * (len(chunks) - 1) == [chunk.choices[0].finish_reason for chunk in chunks[:-1]]


def test_a_chat_goes_on_to_the_end_of_the_context(client: OpenAI) -> None:
    """Without max_tokens a chat ends where the model ends it, or its context does; a completion has sixteen tokens."""

    def chat(words: int, **more: Any) -> tuple[str, int]:
        messages: Any = [{"role": "user", "content": "house " * words}]
        found = client.chat.completions.create(model=MODEL, messages=messages, temperature=0.0, **more)
        assert found.usage is not None
        return found.choices[0].finish_reason, found.usage.total_tokens

    each = (chat(200, max_tokens=1)[1] - chat(100, max_tokens=1)[1]) / 100
    reason, total = chat(int(2010 / each))
    assert (total > 2000 and (reason, total) == ("length", 2048)) or reason == "stop"
    plain = client.completions.create(model=MODEL, prompt=PROMPT, temperature=0.0)
    assert plain.usage is not None
    assert 16 == plain.usage.completion_tokens and "length" == plain.choices[0].finish_reason


@pytest.mark.parametrize("stream", [False, True])
def test_stop(client: OpenAI, stream: bool) -> None:
    """A stop string, or one of several, ends the text before it; no chunk shows any of it."""
    text = client.completions.create(model=MODEL, prompt=PROMPT, **GREEDY).choices[0].text
    stop = text[10:14]
    for asked in (stop, ["never to be seen", stop]):
        if stream:
            chunks = list(client.completions.create(model=MODEL, prompt=PROMPT, stop=asked, stream=True, **GREEDY))
            found, reason = "".join(one.choices[0].text for one in chunks), chunks[-1].choices[0].finish_reason
        else:
            choice = client.completions.create(model=MODEL, prompt=PROMPT, stop=asked, **GREEDY).choices[0]
            found, reason = choice.text, choice.finish_reason
        assert (text[: text.index(stop)], "stop") == (found, reason)


def test_logprobs(client: OpenAI, server: Daemon) -> None:
    """Each token's own log-probability is the target's, in both APIs, whole and streamed."""
    with Client(server.address) as sdk:
        plain = sdk.generate(PROMPT, logprobs=True, **GREEDY)
        chat = sdk.chat(MESSAGES, logprobs=True, **GREEDY)
    assert plain.logprobs is not None and chat.logprobs is not None

    whole = client.completions.create(model=MODEL, prompt=PROMPT, logprobs=0, **GREEDY).choices[0]
    assert whole.logprobs is not None and whole.logprobs.tokens and whole.logprobs.text_offset
    assert plain.logprobs == pytest.approx(whole.logprobs.token_logprobs, abs=1e-4)
    assert plain.text == "".join(whole.logprobs.tokens)
    for token, offset in zip(whole.logprobs.tokens, whole.logprobs.text_offset, strict=True):
        assert whole.text[offset:].startswith(token)

    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, stream=True, **GREEDY)
    told = [one for chunk in stream if (found := chunk.choices[0].logprobs) for one in found.content or ()]
    assert chat.logprobs == pytest.approx([one.logprob for one in told], abs=1e-4)
    assert chat.text == bytes(byte for one in told for byte in one.bytes or ()).decode()


def test_logprobs_of_alternatives(client: OpenAI) -> None:
    """The likeliest tokens in each place are those of transformers' own forward pass, in both APIs, whole and streamed."""
    whole = client.completions.create(
        model=MODEL, prompt=PROMPT, logprobs=3, extra_body={"return_token_ids": True}, **GREEDY
    ).choices[0]
    assert whole.logprobs is not None and whole.logprobs.top_logprobs is not None
    ids = whole.model_dump()["token_ids"]
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    prompt = tokenizer(PROMPT)["input_ids"]
    with torch.inference_mode():
        logits = target(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    best = logits.log_softmax(-1).topk(3)
    for place, values, tokens in zip(
        whole.logprobs.top_logprobs, best.values.tolist(), best.indices.tolist(), strict=True
    ):
        assert values == pytest.approx(list(place.values()), abs=1e-4)
        assert [tokenizer.decode([token]) for token in tokens] == list(place)

    sampled: dict[str, Any] = {"max_tokens": 12, "seed": 3, "logprobs": True, "top_logprobs": 4}
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, **sampled).choices[0]
    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, **sampled)
    streamed = [one for chunk in stream if (found := chunk.choices[0].logprobs) for one in found.content or ()]
    assert reply.logprobs is not None and reply.logprobs.content is not None
    for one, other in zip(reply.logprobs.content, streamed, strict=True):
        values = [alternative.logprob for alternative in one.top_logprobs]
        assert 4 == len(values) and sorted(values, reverse=True) == values
        assert one.logprob == pytest.approx(values[0]) or one.logprob < values[0]
        assert values == pytest.approx([alternative.logprob for alternative in other.top_logprobs], abs=1e-4)
    plain = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=12, seed=3).choices[0]
    assert plain.message.content == reply.message.content  # asking changes nothing


def test_usage_tells_what_speculation_did(client: OpenAI, server: Daemon) -> None:
    """Accepted and rejected predictions and cached tokens, at the end of a stream and whole; none where nobody drafts."""
    prompt = "There was a house at the end of the road, and in it lived a clockmaker. " * 4
    whole = client.completions.create(model=MODEL, prompt=prompt, temperature=0.0, max_tokens=80)
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.completions.create(
        model=MODEL, prompt=prompt, temperature=0.0, max_tokens=80, stream=True, stream_options=options
    )
    chunks = list(stream)
    last = chunks[-1]
    assert [] == last.choices and whole.usage is not None
    assert all(chunk.usage is not None for chunk in chunks)
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert sorted(counts) == counts and whole.usage.completion_tokens == counts[-1]
    assert last.usage is not None and last.usage.prompt_tokens_details is not None
    assert last.usage.prompt_tokens_details.cached_tokens or 0 > 16
    for found in (whole.usage, last.usage):
        assert found.completion_tokens_details is not None
        accepted = found.completion_tokens_details.accepted_prediction_tokens
        rejected = found.completion_tokens_details.rejected_prediction_tokens
        assert accepted is not None and rejected is not None
        assert (accepted > 0) == (server.arguments[0] == "drafter") and rejected >= 0


def test_what_speculation_did_token_by_token(daemons: tuple[Daemon, Daemon]) -> None:
    """`return_speculation` names each token's kind, `target_only` lets the target write the same text alone."""
    with OpenAI(base_url=base(daemons[1]), api_key="none", max_retries=0) as client:
        asked: Any = {"model": MODEL, "prompt": PROMPT, "temperature": 0.0, "max_tokens": 60, "stream": True}
        found = {}
        for alone in (False, True):
            body = {"return_speculation": True, "target_only": alone}
            chunks = list(client.completions.create(**asked, extra_body=body))
            steps = [
                one for chunk in chunks if chunk.choices and (one := getattr(chunk.choices[0], "speculation", None))
            ]
            found[alone] = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
            assert found[alone] == "".join(piece for step in steps for piece in step["pieces"])
            total: Any = chunks[-1].speculation  # type: ignore[union-attr]
            kinds = [kind for step in steps for kind in step["kinds"]]
            assert total["accepted"] == kinds.count("accepted")
            assert total["drafted"] == sum(step["drafted"] for step in steps)
            assert ({"target"} == set(kinds)) == alone
        assert found[True] == found[False]


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"temperature": -1}, "temperature", ("-1", "between 0 and 100")),
        ({"top_p": 1.5}, "top_p", ("1.5",)),
        ({"max_tokens": 0}, "max_tokens", ("0", "at least 1")),
        ({"n": 2}, "n", ("2", "must be 1")),
        ({"prompt": ""}, "prompt", ("empty",)),
        ({"prompt": ["a", "b"]}, "prompt", ("2 prompts",)),
        ({"prompt": [5000]}, "prompt", ("5000",)),
        ({"stop": ["x"] * 17}, "stop", ("17", "16")),
        ({"seed": -1}, "seed", ("-1",)),
        ({"logprobs": 6}, "logprobs", ("6", "from 0 to 5")),
        ({"frequency_penalty": 0.5}, "frequency_penalty", ("not supported",)),
        ({"logit_bias": {"1": 5}}, "logit_bias", ("not supported",)),
        ({"echo": True}, "echo", ("not supported",)),
        ({"best_of": 4}, "best_of", ("not supported",)),
        ({"extra_body": {"temprature": 1}}, "temprature", ("did you mean temperature",)),
        ({"extra_body": {"service_class": "gold"}}, "service_class", ("gold",)),
    ],
)
def test_wrong_requests(client: OpenAI, asked: dict[str, Any], param: str, words: tuple[str, ...]) -> None:
    """400 with the field's name as `param`, its value and the way out in the text."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": MODEL, "prompt": PROMPT, **asked})
    assert param == caught.value.param and "invalid_request_error" == caught.value.type
    assert not [word for word in words if word not in caught.value.message], caught.value.message
    assert caught.value.request_id


def test_more_refusals(client: OpenAI) -> None:
    """An unknown model is 404, too long a prompt says both lengths, and so does a chat that the template has no room for."""
    with pytest.raises(openai.NotFoundError, match="gpt-9") as missing:
        client.completions.create(model="gpt-9", prompt="x")
    assert "model_not_found" == missing.value.code
    with pytest.raises(openai.BadRequestError, match="2048") as long:
        client.completions.create(model=MODEL, prompt="word " * 4000)
    assert "context_length_exceeded" == long.value.code
    with pytest.raises(openai.BadRequestError, match="tools") as tools:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[{"type": "function"}])  # type: ignore[list-item]
    assert "tools" == tools.value.param
    with pytest.raises(openai.BadRequestError, match="image_url"):
        content: Any = [{"type": "image_url", "image_url": {"url": "x"}}]
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
    with pytest.raises(openai.NotFoundError, match="there is nothing at"):
        client.embeddings.create(model=MODEL, input="x")


def test_models(client: OpenAI) -> None:
    """One model, by list and by name."""
    (model,) = client.models.list().data
    assert MODEL == model.id == client.models.retrieve(MODEL).id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_health_ready_and_metrics(server: Daemon) -> None:
    """Plain HTTP beside: alive, ready, and the metrics that the other port has, requests included."""
    address = f"http://{server.said('http')}"
    for path in ("/health", "/ready"):
        assert 200 == httpx.get(address + path).status_code
    metrics = httpx.get(address + "/metrics")
    assert f"specfleet_{server.arguments[0]}_requests_total" in metrics.text
    assert 'http_server_handled_total{http_code="200",http_route="/health"}' in metrics.text
    assert metrics.headers["content-type"].startswith("text/plain")


# --- callers who leave -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_timeout_frees_everything(daemons: tuple[Daemon, Daemon], server: Daemon, stream: bool) -> None:
    """The client gives up: APITimeoutError there, session and pages free here."""
    with OpenAI(base_url=base(server), api_key="none", max_retries=0, timeout=120) as client:
        if stream:
            with client.completions.create(model=MODEL, prompt=PROMPT, stream=True, **LONG) as chunks:  # type: ignore[call-overload]
                next(iter(chunks))
                assert daemons[0].metric("specfleet_verifier_sessions") == 1
        else:
            with pytest.raises(openai.APITimeoutError):
                client.completions.create(model=MODEL, prompt=PROMPT, timeout=0.4, **LONG)
    wait_until_empty(daemons[0])


def test_cancelled_tasks_free_everything(daemons: tuple[Daemon, Daemon], server: Daemon) -> None:
    """Eight requests of the async client are cancelled in the middle, half of them streams."""

    async def one(client: AsyncOpenAI, stream: bool) -> None:
        answer = await client.completions.create(model=MODEL, prompt=PROMPT, stream=stream, **LONG)  # type: ignore[call-overload]
        async for _ in answer:
            pass

    async def main() -> None:
        async with asynchronous(server) as client:
            tasks = [asyncio.create_task(one(client, n % 2 == 0)) for n in range(8)]
            await asyncio.to_thread(wait_for_sessions, daemons[0], 8)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    wait_until_empty(daemons[0])


def test_a_drafter_that_stops_says_so(daemons: tuple[Daemon, Daemon]) -> None:
    """SIGTERM in the middle of a stream: what does not finish in time ends with an error, new requests reach nobody."""
    drafter = start_drafter(daemons[0], "--drain-seconds", "1", model="ngram")
    with running(drafter), OpenAI(base_url=base(drafter), api_key="none", max_retries=0) as client:
        with client.completions.create(model=MODEL, prompt=PROMPT, stream=True, **LONG) as chunks:  # type: ignore[call-overload]
            events = iter(chunks)
            next(events)
            drafter.process.terminate()
            with pytest.raises(openai.APIError, match="stopping"):
                for _ in events:
                    pass
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
        assert 0 == drafter.process.wait(30)
    wait_until_empty(daemons[0])
