"""What a request's body asks for. Every field is supported, or has no say in the text, or is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specfleet.core.errors import InvalidRequest
from specfleet.core.generation import ChatMessage, GenerationRequest
from specfleet.core.types import SamplingParams
from specfleet.http.fields import Fields, kind, shown
from specfleet.wire import limits

COMPLETION_TOKENS = 16
"""`max_tokens` of a completion that does not say, as OpenAI has it. A chat goes on to the context's end."""
CHAT_TOKENS = 2**31 - 1
SILENT = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "request_id", "priority"),
)
"""Have no say in the text."""
NEUTRAL: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "length_penalty": (1, 1.0),
    "logit_bias": ({},),
    "echo": (False,),
    "suffix": ("",),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "add_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "logits_processors": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "response_format": ({"type": "text"},),
}
"""Fields of OpenAI's and vLLM's APIs that would change the text: refused, but for values that change nothing."""
CHAT_NEUTRAL: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "documents": ([],),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to the Generator, and in which form its answer is wanted."""

    request: GenerationRequest
    chat: bool
    stream: bool = False
    include_usage: bool = False
    """A last chunk with the usage."""
    continuous_usage: bool = False
    """The usage so far in every chunk."""
    token_ids: bool = False
    """Each choice says its token ids."""
    speculation: bool = False
    """Each choice says where its tokens came from, the end of the answer what speculation did."""


def completion(body: Mapping[str, Any], request_id: str) -> Asked:
    """`POST /v1/completions`. Raises InvalidRequest naming the field."""
    fields = Fields(body)
    prompt, ids = _prompt(fields)
    logprobs = fields.integer("logprobs")
    if logprobs is not None and not 0 <= logprobs <= 5:
        fields.refuse("logprobs", f"is {logprobs}, must be from 0 to 5")
    tokens = fields.integer("max_tokens")
    sampling = _sampling(fields, COMPLETION_TOKENS if tokens is None else tokens, logprobs)
    request = _request(fields, request_id, sampling, prompt=prompt, prompt_token_ids=ids)
    return _asked(fields, request, chat=False)


def chat_completion(body: Mapping[str, Any], request_id: str) -> Asked:
    """`POST /v1/chat/completions`. Raises InvalidRequest naming the field."""
    fields = Fields(body)
    messages = _messages(fields)
    logprobs = fields.boolean("logprobs")
    top = fields.integer("top_logprobs")
    if top is not None and not 0 <= top <= 20:
        fields.refuse("top_logprobs", f"is {top}, must be from 0 to 20")
    if top is not None and not logprobs:
        fields.refuse("top_logprobs", "needs logprobs to be true")
    for name, values in CHAT_NEUTRAL.items():
        fields.neutral(name, *values)
    sampling = _sampling(fields, _chat_tokens(fields), (top or 0) if logprobs else None)
    request = _request(fields, request_id, sampling, chat=messages)
    return _asked(fields, request, chat=True)


def _prompt(fields: Fields) -> tuple[str | None, tuple[int, ...] | None]:
    """The prompt as text or as ids. Several in one request would be several answers."""
    prompt = fields.take("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            fields.refuse("prompt", f"holds {len(prompt)} prompts, one a request; send a request for each")
        prompt = prompt[0]
    if isinstance(prompt, list):
        limits.check("prompt", prompt, limits.MAX_TOKENS_GIVEN, "tokens")
        return None, fields.as_ids("prompt", prompt)
    if prompt is None:
        fields.refuse("prompt", "is missing; give a text, or a list of token ids")
    return fields.as_text("prompt", prompt), None


def _chat_tokens(fields: Fields) -> int:
    old, new = fields.integer("max_tokens"), fields.integer("max_completion_tokens")
    if old is not None and new is not None and old != new:
        fields.refuse("max_tokens", f"is {old}, max_completion_tokens {new}; give one of them")
    found = new if new is not None else old
    return CHAT_TOKENS if found is None else found


def _messages(fields: Fields) -> tuple[ChatMessage, ...]:
    messages = fields.take("messages")
    if not isinstance(messages, list) or not messages:
        fields.refuse("messages", "must be a list of at least one message")
    limits.check("messages", messages, limits.MAX_CHAT_MESSAGES, "messages")
    return tuple(_message(number, one) for number, one in enumerate(messages))


def _message(number: int, value: Any) -> ChatMessage:
    path = f"messages[{number}]"
    if not isinstance(value, dict):
        raise InvalidRequest.field(path, f"is {kind(value)}, must be an object with role and content")
    one = Fields(value, f"{path}.")
    role = one.text("role")
    if not role:
        one.refuse("role", "is missing; system, user or assistant")
    limits.check(f"{path}.role", role, limits.MAX_ROLE, "characters")
    content = one.take("content")
    text = (
        "".join(_part(one, part) for part in content) if isinstance(content, list) else one.as_text("content", content)
    )
    # What clients send back of an answer of ours.
    for name in ("tool_calls", "annotations"):
        one.neutral(name, [])
    one.close()
    return ChatMessage("system" if role == "developer" else role, text)


def _part(message: Fields, part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        what = shown(part.get("type")) if isinstance(part, dict) else kind(part)
        message.refuse("content", f"has a part of type {what}; only text parts are supported here")
    return message.as_text("content", part.get("text"))


def _sampling(fields: Fields, max_tokens: int, logprobs: int | None) -> SamplingParams:
    """`logprobs`: how many alternatives beside each token's own; None for neither."""
    for name, values in NEUTRAL.items():
        fields.neutral(name, *values)
    if (n := fields.integer("n")) not in (None, 1):
        fields.refuse("n", f"is {n}, must be 1 here; send a request for each")
    given: dict[str, Any] = {
        name: value for name in ("temperature", "top_p", "min_p") if (value := fields.number(name)) is not None
    }
    top_k = fields.integer("top_k")
    if top_k is not None:
        given["top_k"] = 0 if top_k == -1 else top_k  # vLLM's way to say all
    for name, value in (("max_tokens", max_tokens), ("top_k", given.get("top_k", 0))):
        if value >= 2**32:
            fields.refuse(name, f"is {shown(value)}, must be below {2**32}")
    return SamplingParams(
        max_tokens=max_tokens,
        seed=fields.integer("seed"),
        stop=_stop(fields),
        stop_token_ids=_stop_ids(fields),
        ignore_eos=fields.boolean("ignore_eos"),
        logprobs=logprobs is not None,
        top_logprobs=logprobs or 0,
        **given,
    )


def _stop(fields: Fields) -> tuple[str, ...]:
    stop = fields.take("stop")
    texts = [] if stop is None else stop if isinstance(stop, list) else [stop]
    limits.check("stop", texts, SamplingParams.MAX_STOP_STRINGS, "strings")
    for text in texts:
        limits.check("stop", fields.as_text("stop", text), limits.MAX_STOP, "characters")
    return tuple(texts)


def _stop_ids(fields: Fields) -> tuple[int, ...]:
    ids = fields.take("stop_token_ids")
    if ids is None:
        return ()
    if not isinstance(ids, list):
        fields.refuse("stop_token_ids", f"is {kind(ids)}, must be a list of token ids")
    limits.check("stop_token_ids", ids, limits.MAX_STOP_TOKENS, "tokens")
    return fields.as_ids("stop_token_ids", ids)


def _request(fields: Fields, request_id: str, sampling: SamplingParams, **given: Any) -> GenerationRequest:
    names: dict[str, Any] = {name: fields.text(name) or "" for name in ("model", "service_class")}
    for name, value in names.items():
        limits.check(name, value, limits.MAX_NAME, "characters")
    target_only = fields.boolean("target_only")
    return GenerationRequest(sampling=sampling, request_id=request_id, target_only=target_only, **names, **given)


def _asked(fields: Fields, request: GenerationRequest, *, chat: bool) -> Asked:
    stream = fields.boolean("stream")
    token_ids = fields.boolean("return_token_ids")
    speculation = fields.boolean("return_speculation")
    options = fields.object("stream_options")
    usage = continuous = False
    if options is not None:
        if not stream:
            fields.refuse("stream_options", "is given, but stream is not true")
        usage = options.boolean("include_usage")
        continuous = options.boolean("continuous_usage_stats")
        options.ignore("include_obfuscation")
        options.close()
    fields.ignore(*SILENT)
    fields.close()
    return Asked(
        request,
        chat=chat,
        stream=stream,
        include_usage=usage,
        continuous_usage=usage and continuous,
        token_ids=token_ids,
        speculation=speculation,
    )
