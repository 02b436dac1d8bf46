"""A generation as its user sees it: one request, then Started, any number of Tokens, and Completed."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from specfleet.core.errors import InvalidRequest
from specfleet.core.types import (
    FinishReason,
    Mode,
    ModelInfo,
    SamplingParams,
    Speculation,
    TokenKind,
    TopLogprobs,
    Usage,
)

MAX_REQUEST_ID = 128


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """Exactly one of `prompt`, `chat` and `prompt_token_ids` is given."""

    sampling: SamplingParams
    prompt: str | None = None
    chat: tuple[ChatMessage, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    request_id: str = ""
    service_class: str = ""
    model: str = ""
    output_token_ids: tuple[int, ...] = ()
    """Output already received from a stream that broke; the generation goes on behind it."""
    target_only: bool = False
    """Let the target decode alone, to compare: the text is the same."""

    def __post_init__(self) -> None:
        given = [name for name in ("prompt", "chat", "prompt_token_ids") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidRequest.field(
                "prompt", f"needs exactly one of prompt, chat and token ids, got {given or 'none'}"
            )
        if not getattr(self, given[0]):
            raise InvalidRequest.field(given[0], "is empty, must hold at least one token; give some text")
        if len(self.request_id) > MAX_REQUEST_ID:
            raise InvalidRequest.field("request_id", f"has {len(self.request_id)} characters, at most {MAX_REQUEST_ID}")


@dataclass(frozen=True, slots=True)
class Started:
    request_id: str = ""
    model: str = ""
    policy: str = ""
    verifier: str = ""
    drafter: str = ""
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Tokens:
    """Newly committed tokens, and the text they complete. Text never splits a character, so it may lag behind."""

    token_ids: tuple[int, ...]
    text: str = ""
    kinds: tuple[TokenKind, ...] = ()
    logprobs: tuple[float, ...] | None = None
    text_lengths: tuple[int, ...] = ()
    """One per token: how many characters of `text` it completed. Empty where the sender does not say."""
    drafted: int = 0
    """Drafted tokens that the step behind these verified."""
    mode: Mode | None = None
    """Mode in which it was run; None for text without tokens."""
    top_logprobs: tuple[TopLogprobs, ...] | None = None
    """Where asked for, one per token: the likeliest in its place."""

    @property
    def pieces(self) -> tuple[str, ...]:
        """`text`, cut into one piece per token."""
        ends = tuple(itertools.accumulate(self.text_lengths, initial=0))
        return tuple(self.text[start:end] for start, end in itertools.pairwise(ends))

    @property
    def accepted(self) -> int:
        """How many of these were drafted and accepted."""
        return sum(kind is TokenKind.ACCEPTED for kind in self.kinds)

    @property
    def kind(self) -> TokenKind:
        """Kind of the last token: recovered, bonus or target (accepted where a stop condition cut the rest off)."""
        return self.kinds[-1] if self.kinds else TokenKind.TARGET


@dataclass(frozen=True, slots=True)
class Completed:
    reason: FinishReason
    usage: Usage = field(default_factory=Usage)
    speculation: Speculation = field(default_factory=Speculation)


Event = Started | Tokens | Completed


class Generator(Protocol):
    """Who can serve a generation: a drafter with its verifier, or a verifier alone."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """Started, Tokens…, Completed. Closing the iterator cancels the generation."""
        ...

    async def model(self) -> ModelInfo: ...
