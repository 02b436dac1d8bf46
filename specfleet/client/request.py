"""From the SDK's arguments to a GenerationRequest."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypedDict

from specfleet.core.errors import InvalidRequest
from specfleet.core.generation import ChatMessage, GenerationRequest
from specfleet.core.types import SamplingParams

Prompt = str | Sequence[int]
"""Text, or token ids."""
Message = ChatMessage | Mapping[str, str]
"""A ChatMessage, or {"role": …, "content": …}."""


class Sampling(TypedDict, total=False):
    """Fields of SamplingParams, given one by one."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: bool
    top_logprobs: int


class Parameters(Sampling, total=False):
    """And what else may be said of a request."""

    model: str
    service_class: str
    request_id: str
    target_only: bool


OF_THE_REQUEST = Parameters.__optional_keys__ - Sampling.__optional_keys__


def build_request(
    prompt: Prompt | None,
    messages: Sequence[Message] | None,
    sampling: SamplingParams | None,
    parameters: Parameters,
) -> GenerationRequest:
    """Raises InvalidRequest for what no server would take. `parameters` outrank `sampling`."""
    text, ids = (prompt, None) if prompt is None or isinstance(prompt, str) else (None, tuple(prompt))
    return GenerationRequest(
        sampling=_sampling(sampling, parameters),
        prompt=text,
        prompt_token_ids=ids,
        chat=None if messages is None else tuple(map(_message, messages)),
        model=parameters.get("model", ""),
        service_class=parameters.get("service_class", ""),
        request_id=parameters.get("request_id") or uuid.uuid4().hex,
        target_only=parameters.get("target_only", False),
    )


def _sampling(sampling: SamplingParams | None, parameters: Parameters) -> SamplingParams:
    given = {name: value for name, value in parameters.items() if name not in OF_THE_REQUEST}
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    return replace(sampling or SamplingParams(), **given)  # type: ignore[arg-type]  # tuples are made of sequences


def _message(message: Message) -> ChatMessage:
    if isinstance(message, ChatMessage):
        return message
    extra, missing = message.keys() - {"role", "content"}, {"role", "content"} - message.keys()
    if extra or missing:
        raise InvalidRequest.field(
            "messages", f"has {sorted(message)}, each must have role and content and nothing else"
        )
    return ChatMessage(message["role"], message["content"])
