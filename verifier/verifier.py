"""The verifier: admits sessions to the batch loop, and serves them over Verify streams or directly (target-only)."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from scheduler import Request
from specfleet.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelMismatch,
    Overloaded,
    PromptTooLong,
    QuotaExceeded,
    SpecfleetError,
    StreamInterrupted,
    Unavailable,
    UnknownModel,
)
from specfleet.core.protocol import (
    Close,
    Draft,
    Finished,
    Open,
    Opened,
    ServerStream,
    Shadow,
    Verdict,
    VerifyResponse,
)
from specfleet.core.trace import Phase, Tracer
from specfleet.core.types import LOCAL, Load, Mode, ModelInfo, ServiceClass
from specfleet.core.vocabulary import Vocabulary
from verifier.loop import BatchLoop
from verifier.observer import Observer, Silent
from verifier.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    max_sessions: int = 256
    """Sessions open at a time; more are refused with a time to come back."""
    idle_seconds: float = 60.0
    """A stream that neither opens nor takes its verdicts for so long is ended."""
    kv_tokens: int
    """Tokens the KV pool holds."""


class Verifier:
    """Implements the backend of VerificationService and the token source of the verifier's own Generate."""

    def __init__(
        self,
        loop: BatchLoop,
        model: ModelInfo,
        vocabulary: Vocabulary,
        tokenizer_files: Mapping[str, bytes],
        limits: Limits,
        name: str,
        observer: Observer | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._loop = loop
        self._model = model
        self._vocabulary = vocabulary
        self._tokenizer_files = tokenizer_files
        self._limits = limits
        self._name = name
        self._observer = observer or Silent()
        self._tracer = tracer
        self._numbers = itertools.count(1)
        self._trouble = ""

    def model(self) -> ModelInfo:
        return self._model

    def suspend(self, trouble: str) -> None:
        """Refuse whoever comes, and tell those that are here to go on elsewhere, until `resume`."""
        self._trouble = trouble
        self._loop.move(trouble)

    def resume(self) -> None:
        self._trouble = ""

    def load(self) -> Load:
        """Raises Unavailable while suspended, so that drafters look elsewhere."""
        self._check_available()
        return Load(self._loop.prefilling, self._loop.sessions, self._loop.free_kv_tokens, self._loop.step_seconds)

    def tokenizer_files(self) -> Mapping[str, bytes]:
        return self._tokenizer_files

    async def serve(self, stream: ServerStream, identity: str) -> None:
        """One Verify stream of `identity`, from Open to Finished. Raises the typed error that ends it."""
        try:
            async with asyncio.timeout(self._limits.idle_seconds):
                opening = await stream.receive()
        except TimeoutError:
            limit = self._limits.idle_seconds
            raise DeadlineExceeded(f"no Open within {limit:g} s of the stream's start; send it first") from None
        if opening is None:
            return
        if not isinstance(opening, Open):
            raise InvalidRequest.field("message", f"is {type(opening).__name__}, the first one must be Open")
        session = self._admitted(opening, identity, checked=True)
        try:
            # A task group: the end of either side ends the other.
            writer = asyncio.create_task(self._write(session, stream))
            reader = asyncio.create_task(self._read(session, stream))
            for task in await self._first_done(session, {writer, reader}):
                task.result()
        finally:
            for task in (writer, reader):
                task.cancel()
            await asyncio.gather(writer, reader, return_exceptions=True)
            self._loop.withdraw(session)

    async def _first_done(self, session: Session, tasks: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        """Those that have ended, once any has. Raises StreamInterrupted where a message is not taken in time; looked after
        from here, since a timeout around each costs half of what the codec does."""
        limit, now = self._limits.idle_seconds, asyncio.get_running_loop().time
        patience = limit
        while True:
            done, _ = await asyncio.wait(tasks, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return done
            waited = now() - session.sending_since if session.sending_since else 0.0
            if waited >= limit:
                raise StreamInterrupted(f"verdicts were not taken for {limit:g} s; go on behind what came")
            patience = limit - waited

    async def run(self, opening: Open, identity: str) -> AsyncIterator[VerifyResponse]:
        """The same without a drafter and within this process."""
        session = self._admitted(opening, identity, checked=False)
        try:
            yield await self._opened(session)
            finished = False
            while not finished:
                message = await session.outbox.get()
                finished = isinstance(message, Finished)
                yield message
        finally:
            self._loop.withdraw(session)

    async def _read(self, session: Session, stream: ServerStream) -> None:
        """Take in drafts until the drafter closes. Half-closing without Close leaves the session running."""
        while (message := await stream.receive()) is not None:
            match message:
                case Draft():
                    self._check_tokens("token_ids", message.tokens)
                    if message.alternatives:
                        self._check_tokens("alternatives", tuple(one.token for one in message.alternatives))
                    for q in message.q or ():
                        self._check_tokens("distributions", q.token_ids)
                    if not math.isfinite(message.draft_seconds):
                        message = message._replace(draft_seconds=self._reported("draft_seconds", message.draft_seconds))
                    self._loop.offer(session, message)
                case Close():
                    return
                case Shadow():
                    each = self._reported("draft_seconds", message.draft_seconds_per_token)
                    self._loop.shadow(session, replace(message, draft_seconds_per_token=each))
                case Open():
                    raise InvalidRequest.field("message", "is a second Open; a stream carries one generation")
                case _:
                    assert_never(message)
        await asyncio.Event().wait()

    async def _write(self, session: Session, stream: ServerStream) -> None:
        await stream.send(await self._opened(session))
        lane, now = f"session {session.number}", asyncio.get_running_loop().time
        finished = False
        while not finished:
            message = await session.outbox.get()
            finished = isinstance(message, Finished)
            if self._tracer is not None and isinstance(message, Verdict):
                self._traced(self._tracer, message, lane)
            session.sending_since = now()
            await stream.send(message)
            session.sending_since = 0.0

    @staticmethod
    def _traced(tracer: Tracer, verdict: Verdict, lane: str) -> None:
        """The verdict has waited for its turn since the step was over."""
        if verdict.mode is Mode.ROUND and verdict.drafted:
            tracer.round(Phase.REPLY, tracer.stepped_at, tracer.clock(), lane)

    async def _opened(self, session: Session) -> Opened:
        if session.finished is not None:
            session.outbox.put(Finished(session.finished, session.usage))
            grant = LOCAL
        else:
            grant = await session.opened
        return Opened(
            grant=grant,
            model=self._model,
            prompt_tokens=session.prompt_length,
            cached_tokens=session.cached_tokens,
            verifier=self._name,
            waited_seconds=self._loop.waited(session),
        )

    def _admitted(self, opening: Open, identity: str, *, checked: bool) -> Session:
        """A session for `opening`, or the typed refusal. `checked`: the caller is another process, so compare vocabularies."""
        try:
            self._check_available()
            self._check(opening, checked)
            service = self._loop.service_class(opening.service_class)
            self._admit(opening, identity, service)
        except SpecfleetError as error:
            self._observer.session_rejected(error.code, bool(opening.output))
            raise
        opening = replace(
            opening,
            draft_seconds_per_token=self._reported("draft_seconds", opening.draft_seconds_per_token),
            round_trip_seconds=self._reported("round_trip", opening.round_trip_seconds),
        )
        room = min(self._model.context_length, self._limits.kv_tokens)
        session = Session(next(self._numbers), opening, self._model.eos_token_ids, room, identity, service)
        if session.finished is None:
            # At once: whoever asks next is to find it there.
            self._loop.submit(session)
        return session

    def _check_available(self) -> None:
        if self._trouble:
            raise Unavailable(f"{self._trouble}; go on elsewhere", retry_after=1.0)

    def _admit(self, opening: Open, identity: str, service: ServiceClass) -> None:
        """Raises Overloaded or QuotaExceeded, with a time to come back, before any work is done."""
        if self._loop.sessions >= self._limits.max_sessions:
            raise Overloaded(
                f"{self._loop.sessions} sessions are open, at most {self._limits.max_sessions}; come back in a second",
                retry_after=1.0,
            )
        refusal = self._loop.refusal(Request(identity, service, len(opening.prompt) + len(opening.output)))
        if refusal is not None:
            kind = QuotaExceeded if refusal.quota else Overloaded
            raise kind(refusal.reason, retry_after=refusal.retry_after)

    def _reported(self, name: str, value: float) -> float:
        """What a drafter says of itself; 0, not known, where that cannot be."""
        if math.isfinite(value):
            return value
        self._observer.ignored(name)
        return 0.0

    def _check(self, opening: Open, checked: bool) -> None:
        if opening.model and opening.model != self._model.name:
            raise UnknownModel(f"model {opening.model!r} is not served here; this verifier serves {self._model.name!r}")
        if checked:
            self._check_vocabulary(opening)
        self._check_tokens("prompt_token_ids", opening.prompt)
        self._check_tokens("output_token_ids", opening.output)
        self._check_length(opening)

    def _check_length(self, opening: Open) -> None:
        """A text that was cut off where its room ends, and lost its end on the way, is let in to be told so."""
        length = len(opening.prompt) + len(opening.output)
        spare = 1 if opening.output else 0
        if length >= self._model.context_length + spare:
            raise PromptTooLong(
                f"the prompt has {length} tokens, but the context of {self._model.name} is {self._model.context_length} "
                f"tokens, output included; shorten the prompt",
                details={"field": "prompt"},
            )
        if length >= self._limits.kv_tokens + spare:
            raise PromptTooLong(
                f"the prompt has {length} tokens, but the KV cache of this verifier holds {self._limits.kv_tokens}; "
                f"shorten the prompt, or raise --kv-cache-tokens",
                details={"field": "prompt"},
            )

    def _check_tokens(self, name: str, tokens: tuple[int, ...]) -> None:
        size = self._model.vocabulary_size
        if tokens and max(tokens) >= size:
            raise InvalidRequest.field(name, f"holds {max(tokens)}, must be ids below the vocabulary size {size}")

    def _check_vocabulary(self, opening: Open) -> None:
        if opening.vocabulary_digest == self._model.vocabulary_digest:
            return
        advice = f"use a drafter with the tokenizer of {self._model.name}"
        if not opening.vocabulary_checksums:
            raise ModelMismatch(
                f"vocabulary differs: fingerprint {opening.vocabulary_digest.hex()[:16] or '(none)'}, here "
                f"{self._model.vocabulary_digest.hex()[:16]}; {advice} (send checksums to learn the first id that differs)",
                details={"vocabulary": "differs"},
            )
        first = self._vocabulary.first_difference(opening.vocabulary_checksums)
        if first is None:
            raise ModelMismatch(f"vocabulary differs in its special ids; {advice}", details={"vocabulary": "differs"})
        token = self._vocabulary.tokens[first] if first < len(self._vocabulary.tokens) else ""
        here = f"is {token!r} here" if token else "has no token here"
        raise ModelMismatch(
            f"vocabulary differs, first at id {first}, which {here}; {advice}", details={"first_difference": str(first)}
        )


class TargetOnly:
    """Token source of the verifier's own Generate: sessions without a drafter. `caller` says who asks."""

    def __init__(self, verifier: Verifier, caller: Callable[[], str]) -> None:
        self._verifier = verifier
        self._caller = caller

    async def model(self) -> ModelInfo:
        return self._verifier.model()

    def run(self, opening: Open) -> AsyncIterator[VerifyResponse]:
        return self._verifier.run(replace(opening, can_draft=False), self._caller())
