"""Bodies of requests become what is asked of a Generator, or a refusal that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from specfleet.core.errors import InvalidRequest
from specfleet.core.generation import ChatMessage
from specfleet.core.types import SamplingParams
from specfleet.http import requests
from specfleet.http.fields import parse
from specfleet.http.requests import Asked

USER = {"role": "user", "content": "hi"}


def completion(**body: Any) -> Asked:
    return requests.completion({"prompt": "x", **body}, "r")


def chat(**body: Any) -> Asked:
    return requests.chat_completion({"messages": [USER], **body}, "r")


def refused(read: Any, **body: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read(**body)
    return caught.value


def test_everything_that_is_supported_arrives() -> None:
    """Each field of a completion is in the request."""
    found = completion(
        model="m",
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        seed=3,
        stop=["a", "b"],
        stop_token_ids=[4],
        ignore_eos=True,
        logprobs=0,
        service_class="chat",
        stream=True,
        stream_options={"include_usage": True},
        return_token_ids=True,
        return_speculation=True,
        target_only=True,
    )
    expected = SamplingParams(
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        seed=3,
        stop=("a", "b"),
        stop_token_ids=(4,),
        ignore_eos=True,
        logprobs=True,
    )
    assert expected == found.request.sampling
    assert ("x", "m", "chat", "r", True) == (
        found.request.prompt,
        found.request.model,
        found.request.service_class,
        found.request.request_id,
        found.request.target_only,
    )
    assert (True, True, False, True, True) == (
        found.stream,
        found.include_usage,
        found.continuous_usage,
        found.token_ids,
        found.speculation,
    )


def test_defaults_are_openais() -> None:
    """Sixteen tokens of a completion, a chat to its end, temperature 1, everything else off; null is not given."""
    nothing = dict.fromkeys(("temperature", "top_p", "seed", "stop", "logprobs", "max_tokens", "stream", "model", "n"))
    assert completion(**nothing) == completion()
    assert SamplingParams(max_tokens=16) == completion().request.sampling
    assert SamplingParams(max_tokens=requests.CHAT_TOKENS) == chat().request.sampling
    assert not completion().stream


@pytest.mark.parametrize(
    ("prompt", "text", "ids"),
    [
        ("a", "a", None),
        (["a"], "a", None),
        ([1, 2], None, (1, 2)),
        ([[1, 2]], None, (1, 2)),
    ],
)
def test_prompts(prompt: Any, text: str | None, ids: tuple[int, ...] | None) -> None:
    """Text or ids, alone or as a list of one."""
    found = completion(prompt=prompt).request
    assert (text, ids) == (found.prompt, found.prompt_token_ids)


def test_messages() -> None:
    """Content as text or text parts; what clients send back of our answers; a developer is the system."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    answer = {"role": "assistant", "content": "c", "refusal": None, "tool_calls": [], "annotations": []}
    found = chat(messages=[{"role": "developer", "content": "d"}, {"role": "user", "content": parts}, answer]).request
    assert (ChatMessage("system", "d"), ChatMessage("user", "ab"), ChatMessage("assistant", "c")) == found.chat


@pytest.mark.parametrize("name", [*requests.NEUTRAL, *requests.CHAT_NEUTRAL])
def test_unsupported_fields_are_refused_by_name(name: str) -> None:
    """Whatever would change the text and cannot; values that change nothing pass."""
    error = refused(chat, **{name: "anything"})
    assert name == error.details["field"] and "not supported" in error.message
    for value in (None, *(requests.NEUTRAL | requests.CHAT_NEUTRAL)[name]):
        chat(**{name: value})


def test_what_looks_equal_is_not() -> None:
    """true is not 1, and 1 is not true."""
    assert "best_of" == refused(completion, best_of=True).details["field"]
    assert "echo" == refused(completion, echo=0).details["field"]


@pytest.mark.parametrize("name", requests.SILENT)
def test_fields_without_a_say_are_taken(name: str) -> None:
    """Whatever stands in them."""
    assert completion(**{name: {"any": ["thing"]}}) == completion()


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"prompt": None}, "prompt", "missing"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt_token_ids", "empty"),
        ({"prompt": 5}, "prompt", "a number, must be a string"),
        ({"prompt": ["a", "b"]}, "prompt", "holds 2 prompts"),
        ({"prompt": [1, "a"]}, "prompt", "holds a, must be token ids"),
        ({"prompt": [1.5]}, "prompt", "holds 1.5"),
        ({"prompt": [-1]}, "prompt", "holds -1"),
        ({"prompt": [True]}, "prompt", "holds true"),
        ({"prompt": "\ud800"}, "prompt", "surrogate at character 0"),
        ({"max_tokens": "many"}, "max_tokens", "is many, must be a whole number"),
        ({"max_tokens": 1.5}, "max_tokens", "is 1.5"),
        ({"max_tokens": True}, "max_tokens", "is true"),
        ({"max_tokens": 2**40}, "max_tokens", "must be below"),
        ({"max_tokens": -3}, "max_tokens", "is -3, must be at least 1"),
        ({"temperature": "hot"}, "temperature", "is hot, must be a number"),
        ({"temperature": 10**400}, "temperature", "too large"),
        ({"top_k": -2}, "top_k", "-2"),
        ({"seed": 2**64}, "seed", "unsigned 64-bit"),
        ({"stop": 5}, "stop", "a number, must be a string"),
        ({"stop": ["a", 5]}, "stop", "a number"),
        ({"stop": ["a"] * 17}, "stop", "has 17 strings, at most 16"),
        ({"stop": "a" * 257}, "stop", "has 257 characters, at most 256"),
        ({"stop": [""]}, "stop", "at least one character"),
        ({"stop": ["\udfff"]}, "stop", "surrogate"),
        ({"stop_token_ids": 5}, "stop_token_ids", "a list of token ids"),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids", "at most 1024"),
        ({"model": 5}, "model", "must be a string"),
        ({"model": "m" * 257}, "model", "at most 256"),
        ({"stream": "yes"}, "stream", "must be true or false"),
        ({"stream_options": {}}, "stream_options", "stream is not true"),
        ({"stream": True, "stream_options": 1}, "stream_options", "must be an object"),
        (
            {"stream": True, "stream_options": {"include_usge": True}},
            "stream_options.include_usge",
            "mean include_usage",
        ),
        ({"logprobs": 6}, "logprobs", "from 0 to 5"),
        ({"temprature": 1}, "temprature", "did you mean temperature"),
        ({"nonsense": 1}, "nonsense", "leave it out"),
        ({"messages": [USER]}, "messages", "not a field"),
    ],
)
def test_wrong_completions(body: dict[str, Any], field: str, words: str) -> None:
    """The field is named, and the value, the limit or the way out."""
    error = refused(completion, **body)
    assert field == error.details["field"] and words in error.message, error.message
    assert len(error.message) < 300


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"messages": []}, "messages", "at least one"),
        ({"messages": "hi"}, "messages", "must be a list"),
        ({"messages": ["hi"]}, "messages[0]", "must be an object"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content", "null, must be a string"),
        ({"messages": [{"role": "r" * 65, "content": "x"}]}, "messages[0].role", "at most 64"),
        ({"messages": [{**USER, "content": [{"type": "image_url"}]}]}, "messages[0].content", "image_url"),
        ({"messages": [{**USER, "content": ["x"]}]}, "messages[0].content", "type a string"),
        ({"messages": [{**USER, "tool_calls": [{}]}]}, "messages[0].tool_calls", "not supported"),
        ({"messages": [{**USER, "name": "bob"}]}, "messages[0].name", "not a field"),
        ({"messages": [USER] * 4097}, "messages", "at most 4096"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "give one of them"),
        ({"logprobs": 1}, "logprobs", "must be true or false"),
        ({"top_logprobs": 1}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"prompt": "x"}, "prompt", "not a field"),
    ],
)
def test_wrong_chats(body: dict[str, Any], field: str, words: str) -> None:
    """The same for chats; messages by their number."""
    error = refused(chat, **body)
    assert field == error.details["field"] and words in error.message, error.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "a list, must be a JSON object"),
        (b"null", "null, must be"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "Infinity"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
    ],
)
def test_what_is_no_body(body: bytes, words: str) -> None:
    """One line that says what is wrong."""
    with pytest.raises(InvalidRequest, match=words) as caught:
        parse(body)
    assert "body" == caught.value.details["field"]


def test_a_body_is_read() -> None:
    assert {"prompt": "é"} == parse(json.dumps({"prompt": "é"}, ensure_ascii=False).encode())
