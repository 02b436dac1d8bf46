"""Events -> JSON: whole answers, chunks of a stream, models. The shapes are OpenAI's, with fields of our own beside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from specfleet.core.errors import InternalError
from specfleet.core.generation import Completed, Started, Tokens
from specfleet.core.types import FinishReason, ModelInfo, Speculation, Usage
from specfleet.http.requests import Asked

OWNER = "specfleet"
Piece = Callable[[int], str]
"""The text of one token, as `specfleet.text.Tokenizer.piece`."""


def encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def sse(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + encoded(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def model(info: ModelInfo, created: int) -> dict[str, Any]:
    return {
        "id": info.name,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "max_model_len": info.context_length,
    }


def models(info: ModelInfo, created: int) -> dict[str, Any]:
    return {"object": "list", "data": [model(info, created)]}


def usage(counts: Usage, speculation: Speculation) -> dict[str, Any]:
    """Accepted and rejected predictions are drafted tokens that were verified."""
    return {
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counts.cached_tokens},
        "completion_tokens_details": {
            "accepted_prediction_tokens": speculation.accepted,
            "rejected_prediction_tokens": speculation.drafted - speculation.accepted,
        },
    }


@dataclass(slots=True)
class Answer:
    """One request's answer while its events come in. Begins with Started; `chunk` for each Tokens, then `last`; or `whole`."""

    asked: Asked
    started: Started
    created: int
    piece: Piece
    _tokens: list[Tokens] = field(default_factory=list)
    _offset: int = 0
    """Characters before the next token, for a completion's log-probabilities."""
    _count: int = 0
    _open: bool = False
    """The assistant's role was said."""

    def whole(self, completed: Completed) -> dict[str, Any]:
        """The answer to a request that does not stream: all Tokens were given to `add`."""
        merged = self._merged()
        text = merged.text
        choice = self._choice(merged, reason=_reason(completed))
        if self.asked.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return self._object("chat.completion", [choice]) | self._figures(completed)

    def add(self, event: Tokens) -> None:
        self._tokens.append(event)

    def chunks(self, event: Tokens) -> list[dict[str, Any]]:
        """What to send for newly committed tokens; nothing while they complete no text and nobody asked for more."""
        self._count += len(event.token_ids)
        asked = self.asked
        if not event.text and not (asked.token_ids or asked.speculation or asked.request.sampling.logprobs):
            return []
        found = (
            [] if self._open or not asked.chat else [self._chunk([self._delta({"role": "assistant", "content": ""})])]
        )
        self._open = True
        choice = self._choice(event)
        if asked.chat:
            choice["delta"] = {"content": event.text}
        else:
            choice["text"] = event.text
        return [*found, self._chunk([choice])]

    def last(self, completed: Completed) -> list[dict[str, Any]]:
        """How a stream ends: why, and what it took where that was asked for."""
        reason = _reason(completed)
        said = {"content": ""} if self._open else {"role": "assistant", "content": ""}
        choice = self._delta(said) if self.asked.chat else {"text": ""} | self._choice(Tokens(()))
        found = [self._chunk([choice | {"finish_reason": reason}])]
        if self.asked.include_usage or self.asked.speculation:
            found.append(self._object("chat.completion.chunk", []) | self._figures(completed))
        return found

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        found = self._object("chat.completion.chunk", choices)
        if self.asked.continuous_usage:
            prompt = self.started.prompt_tokens
            so_far = {"prompt_tokens": prompt, "completion_tokens": self._count, "total_tokens": prompt + self._count}
            found["usage"] = so_far
        elif self.asked.include_usage:
            found["usage"] = None
        return found

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        prefix = "chatcmpl" if self.asked.chat else "cmpl"
        return {
            "id": f"{prefix}-{self.started.request_id}",
            "object": kind if self.asked.chat else "text_completion",
            "created": self.created,
            "model": self.started.model,
            "choices": choices,
        }

    def _figures(self, completed: Completed) -> dict[str, Any]:
        found: dict[str, Any] = {"usage": usage(completed.usage, completed.speculation)}
        if self.asked.speculation:
            server = {name: getattr(self.started, name) for name in ("drafter", "verifier", "policy")}
            found["speculation"] = completed.speculation.to_dict() | {"server": server}
        return found

    def _delta(self, said: dict[str, str]) -> dict[str, Any]:
        return {"index": 0, "delta": said, "logprobs": None, "finish_reason": None}

    def _choice(self, event: Tokens, reason: str | None = None) -> dict[str, Any]:
        found: dict[str, Any] = {"index": 0, "logprobs": self._logprobs(event), "finish_reason": reason}
        if self.asked.token_ids:
            found["token_ids"] = list(event.token_ids)
        if self.asked.speculation and event.token_ids:
            found["speculation"] = {"kinds": [kind.value for kind in event.kinds], "pieces": list(event.pieces)}
            if event.mode is not None:  # one step's
                found["speculation"] |= {"drafted": event.drafted, "mode": event.mode.value}
        return found

    def _logprobs(self, event: Tokens) -> dict[str, Any] | None:
        if not self.asked.request.sampling.logprobs or not event.token_ids:
            return None
        own = list(zip(map(self.piece, event.token_ids), event.logprobs or (), strict=False))
        top = [
            [(self.piece(token), value) for token, value in place] for place in event.top_logprobs or [()] * len(own)
        ]
        if self.asked.chat:
            content = [
                _logprob(*pair) | {"top_logprobs": [_logprob(*one) for one in place]}
                for pair, place in zip(own, top, strict=False)
            ]
            return {"content": content, "refusal": None}
        offsets = []
        for text, _ in own:
            offsets.append(self._offset)
            self._offset += len(text)
        beside = [_by_text([*place, pair]) for pair, place in zip(own, top, strict=False)]
        return {
            "tokens": [text for text, _ in own],
            "token_logprobs": [value for _, value in own],
            "top_logprobs": beside if event.top_logprobs else None,
            "text_offset": offsets,
        }

    def _merged(self) -> Tokens:
        """All that came, as one event."""
        parts = self._tokens
        logprobs = tuple(value for part in parts for value in part.logprobs or ())
        top = tuple(place for part in parts for place in part.top_logprobs or ())
        return Tokens(
            tuple(one for part in parts for one in part.token_ids),
            "".join(part.text for part in parts),
            kinds=tuple(kind for part in parts for kind in part.kinds),
            logprobs=logprobs or None,
            text_lengths=tuple(length for part in parts for length in part.text_lengths),
            top_logprobs=top or None,
        )


def _logprob(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": value, "bytes": _bytes(text)}


def _by_text(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """As completions have it: likeliest first, the token's own among them. Of two tokens that look alike the first counts."""
    found: dict[str, float] = {}
    for text, value in pairs:
        found.setdefault(text, value)
    return found


def _bytes(text: str) -> list[int] | None:
    """UTF-8 of a token; None for part of a character, which is no text."""
    return None if "\ufffd" in text else list(text.encode())


def _reason(completed: Completed) -> str:
    if completed.reason not in (FinishReason.STOP, FinishReason.LENGTH):
        raise InternalError(f"the generation ended with {completed.reason.value}, which nobody asked for; ask again")
    return str(completed.reason.value)
