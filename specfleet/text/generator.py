"""The Generator of both daemons: text in, text out, over any source of committed tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from specfleet.core.errors import InvalidRequest, PositionGap, PromptTooLong, StreamInterrupted, UnknownModel
from specfleet.core.generation import Completed, Event, GenerationRequest, Started, Tokens
from specfleet.core.protocol import Finished, Open, Opened, Verdict
from specfleet.core.types import FinishReason, ModelInfo, SamplingParams, Speculation, TokenKind, Usage
from specfleet.text.detokenizer import Detokenizer
from specfleet.text.stop import StopStrings
from specfleet.text.tokenizer import Tokenizer

_LONG_TEXT = 20_000
"""Characters above which a prompt is tokenized in a thread: beyond some milliseconds every other stream would notice."""

T = TypeVar("T")


class TokenSource(Protocol):
    """Where committed tokens come from: a drafting session over a verifier, or the verifier itself."""

    def run(self, opening: Open) -> AsyncIterator[Opened | Verdict | Finished]:
        """Opened (again after each change of verifier), Verdicts, Finished. Closing the iterator ends the session.

        The source adds to `opening` what only it knows: vocabulary digest, speed, whether it can draft.
        """
        ...

    async def model(self) -> ModelInfo: ...


class TextGenerator:
    """Implements `specfleet.core.generation.Generator`. `drafter` is this drafter's name, "" on a verifier."""

    def __init__(self, source: TokenSource, tokenizer: Tokenizer, *, drafter: str = "") -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._drafter = drafter

    async def model(self) -> ModelInfo:
        return await self._source.model()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """Started, one Tokens per verdict, Completed.

        Text that was held back comes last, in a Tokens without ids. With `output_token_ids` the text goes on behind what
        those ids have shown already. Raises InvalidRequest, PromptTooLong, UnknownModel before anything is started, and
        whatever the source raises.
        """
        model = await self._source.model()
        prompt = await self._prompt(request, model)
        progress = _Progress(request, prompt, self._tokenizer, model)
        if progress.reason is not None:  # only `Completed` got lost
            yield Started(
                request.request_id, model.name, model.policy, drafter=self._drafter, prompt_tokens=len(prompt)
            )
        else:
            opening = Open(
                prompt=prompt,
                sampling=request.sampling,
                output=request.output_token_ids,
                request_id=request.request_id,
                service_class=request.service_class,
                model=request.model,
                can_draft=not request.target_only,
            )
            async with _closing(self._source.run(opening)) as messages:
                async for message in messages:
                    match message:
                        case Verdict():
                            tokens = progress.commit(message)
                            if tokens is not None:
                                yield tokens
                        case Opened():
                            if progress.opened(message):
                                yield self._started(request, message)
                        case Finished():
                            progress.reason = message.reason
                    if progress.reason is not None:
                        break
        rest = progress.flush()
        if rest:
            yield Tokens((), rest)
        yield progress.completed()

    def _started(self, request: GenerationRequest, opened: Opened) -> Started:
        return Started(
            request.request_id,
            opened.model.name,
            opened.model.policy,
            opened.verifier,
            drafter=self._drafter,
            prompt_tokens=opened.prompt_tokens,
        )

    async def _prompt(self, request: GenerationRequest, model: ModelInfo) -> tuple[int, ...]:
        """The prompt's ids, checked against what the model can take."""
        if request.model and request.model != model.name:
            raise UnknownModel(
                f"model {request.model!r} is not served here, {model.name!r} is; ask for that or for none"
            )
        prompt = await self._encode(request)
        if not prompt:
            raise InvalidRequest.field("prompt", "gives no tokens, must hold at least one; give some text")
        if len(prompt) >= model.context_length:
            raise PromptTooLong(
                f"prompt has {len(prompt)} tokens, the context of {model.name} holds {model.context_length} and needs "
                f"room for at least one more; shorten the prompt by {len(prompt) - model.context_length + 1} tokens",
                details={"field": "prompt"},
            )
        for name, ids in (("prompt_token_ids", prompt), ("output_token_ids", request.output_token_ids)):
            wrong = next((index for index in ids if not 0 <= index < model.vocabulary_size), None)
            if wrong is not None:
                raise InvalidRequest.field(
                    name, f"holds {wrong}, must be below {model.vocabulary_size} for {model.name}"
                )
        return prompt

    async def _encode(self, request: GenerationRequest) -> tuple[int, ...]:
        def encode() -> list[int]:
            if request.chat is not None:
                return self._tokenizer.apply_chat(request.chat)
            return self._tokenizer.encode(request.prompt or "")

        if request.prompt_token_ids is not None:
            return request.prompt_token_ids
        length = len(request.prompt or "") + sum(len(message.content) for message in request.chat or ())
        return tuple(encode() if length < _LONG_TEXT else await asyncio.to_thread(encode))


@dataclass(slots=True)
class _Text:
    """Ids in, visible text out: characters whole, nothing of a stop string, nothing for an id that ends the text."""

    detokenizer: Detokenizer
    stops: StopStrings
    silent: frozenset[int]

    @classmethod
    def of(cls, sampling: SamplingParams, tokenizer: Tokenizer, model: ModelInfo) -> _Text:
        eos = () if sampling.ignore_eos else model.eos_token_ids
        return cls(Detokenizer(tokenizer), StopStrings(sampling.stop), frozenset((*eos, *sampling.stop_token_ids)))

    def feed(self, token_id: int) -> str:
        return "" if token_id in self.silent else self.stops.feed(self.detokenizer.feed(token_id))

    def flush(self) -> str:
        return self.stops.feed(self.detokenizer.flush()) + self.stops.flush()


class _Progress:
    """What one generation has committed, shown and counted so far. `reason` is set once it has ended."""

    def __init__(
        self, request: GenerationRequest, prompt: tuple[int, ...], tokenizer: Tokenizer, model: ModelInfo
    ) -> None:
        self._prompt_tokens = len(prompt)
        self._output_tokens = len(request.output_token_ids)
        self._cached: int | None = None
        self._text = _Text.of(request.sampling, tokenizer, model)
        self._speculation = Speculation()
        self.reason: FinishReason | None = None
        for token_id in request.output_token_ids:  # shown already; what it held back is still to come
            self._text.feed(token_id)
        if self._text.stops.stopped or (set(request.output_token_ids[-1:]) & self._text.silent):
            self.reason = FinishReason.STOP
        elif self._output_tokens >= request.sampling.max_tokens:
            self.reason = FinishReason.LENGTH

    def opened(self, message: Opened) -> bool:
        """True for the first one; later ones are resumptions."""
        if self._cached is None:
            self._cached = message.cached_tokens
            return True
        self._speculation.resumes += 1
        return False

    def commit(self, verdict: Verdict) -> Tokens | None:
        """The event for a verdict; None where it says nothing new. Raises PositionGap."""
        position = self._prompt_tokens + self._output_tokens
        if verdict.position > position:
            raise PositionGap(
                f"a verdict begins at position {verdict.position}, tokens are known up to {position} only"
            )
        known = position - verdict.position
        if known >= len(verdict.tokens):
            return None
        self._speculation.count(verdict.mode, verdict.verified, verdict.right, len(verdict.tokens))
        ids, pieces = verdict.tokens[known:], []
        for token_id in ids:
            pieces.append(self._text.feed(token_id))
            if self._text.stops.stopped:
                self.reason = FinishReason.STOP
                break
        kept = slice(known, known + len(pieces))
        self._output_tokens += len(pieces)
        return Tokens(
            verdict.tokens[kept],
            "".join(pieces),
            kinds(verdict)[kept],
            verdict.logprobs[kept] if verdict.logprobs is not None else None,
            tuple(map(len, pieces)),
            verdict.drafted,
            verdict.mode,
            verdict.top_logprobs[kept] if verdict.top_logprobs is not None else None,
        )

    def flush(self) -> str:
        """Text still held back. Raises StreamInterrupted when nobody has said that the generation is over."""
        if self.reason is None:
            raise StreamInterrupted(f"the stream of tokens broke off after {self._output_tokens} tokens; ask again")
        return self._text.flush()

    def completed(self) -> Completed:
        usage = Usage(self._prompt_tokens, self._output_tokens, self._cached or 0)
        return Completed(self.reason or FinishReason.ERROR, usage, self._speculation)


def kinds(verdict: Verdict) -> tuple[TokenKind, ...]:
    """How each token of a verdict came about. Where a stop condition cut the last one off, all were accepted."""
    if len(verdict.tokens) <= verdict.right:
        return (TokenKind.ACCEPTED,) * len(verdict.tokens)
    return (TokenKind.ACCEPTED,) * verdict.right + (verdict.own,) * (len(verdict.tokens) - verdict.right)


@asynccontextmanager
async def _closing(iterator: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Close the source when the reader leaves, now rather than when the garbage collector comes by."""
    try:
        yield iterator
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()
