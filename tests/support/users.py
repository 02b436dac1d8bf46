"""Users of a fleet on the virtual clock: the SDK's stream, what it must give, and a clock of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from specfleet.client import stream as sdk
from specfleet.core.clock import Clock
from specfleet.core.errors import Overloaded
from specfleet.core.generation import Completed, GenerationRequest, Tokens
from specfleet.core.protocol import Finished, Open, Opened, Verdict
from specfleet.core.types import LOCAL, FinishReason, Mode, ModelInfo, Usage
from specfleet.core.vocabulary import Vocabulary
from specfleet.text import TextGenerator
from support.engine import VOCABULARY, reference

TABLE = Vocabulary(tuple(f"t{i}" for i in range(VOCABULARY)), ())
CONTEXT = 200
PIECES = tuple(
    b"\xc3" if index % 7 == 0 else b"\xa9" if index % 7 == 1 else f"{chr(97 + index % 26)} "[: 1 + index % 2].encode()
    for index in range(VOCABULARY)
)


class Letters:
    """A tokenizer with letters, and a character that takes two tokens."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return b"".join(PIECES[index] for index in token_ids).decode(errors="replace")


def skewed(rng: np.random.Generator) -> Clock:
    """A clock that is off by anything, and goes up to a tenth too fast or too slow."""
    loop, rate, offset = asyncio.get_running_loop(), float(rng.uniform(0.9, 1.1)), float(rng.uniform(-1e3, 1e6))
    return lambda: offset + rate * loop.time()


@dataclass
class User:
    """One request, the answer it must have, and the answer it has."""

    request: GenerationRequest
    at: float
    leaves_after: int | None
    """Tokens after which it cancels."""
    ids: list[int] = field(default_factory=list)
    text: str = ""
    reason: FinishReason | None = None
    resumes: int = 0
    done_at: float = 0.0

    async def run(self, servers: Callable[[], list[sdk.Server]], rng: np.random.Generator) -> None:
        await asyncio.sleep(self.at)
        clock = skewed(rng)
        patience = sdk.Patience(timeout=1e6, retries=10**6, resume=1e6)
        while True:
            stream = sdk.AsyncStream(servers(), self.request, patience, clock, lambda low, high: rng.uniform(low, high))
            try:
                async with stream:
                    while await stream.next_event() is not None:
                        if self.leaves_after is not None and len(stream.token_ids) >= self.leaves_after:
                            break
            except Overloaded as error:
                # Refused before any work was done, with a time to come back: as much an answer as a text is.
                assert not stream.token_ids and error.retry_after
                await asyncio.sleep(error.retry_after)
                continue
            self.ids, self.text, self.reason = list(stream.token_ids), stream.text, stream.finish_reason
            self.resumes = stream.speculation.resumes
            self.done_at = asyncio.get_running_loop().time()
            return

    def check(self, ids: list[int], text: str, reason: FinishReason) -> None:
        who = self.request.request_id
        if self.reason is FinishReason.CANCELLED:
            assert ids[: len(self.ids)] == self.ids and text.startswith(self.text), f"{who}: {self.ids} {self.text!r}"
            return
        assert ids == self.ids, f"{who}: got {self.ids}, must have {ids}"
        assert (text, reason) == (self.text, self.reason), f"{who}: got {self.text!r} {self.reason}, must have {text!r}"


class Alone:
    """Token source that writes the reference, a token at a time: what an undisturbed run gives."""

    def __init__(self, ends: Sequence[int]) -> None:
        self._ends = tuple(ends)

    async def model(self) -> ModelInfo:
        return ModelInfo("fake", VOCABULARY, TABLE.digest(), CONTEXT, self._ends)

    async def run(self, opening: Open) -> AsyncIterator[Opened | Verdict | Finished]:
        model, prompt = await self.model(), opening.prompt
        yield Opened(grant=LOCAL, model=model, prompt_tokens=len(prompt), cached_tokens=0, verifier="")
        room = min(opening.sampling.max_tokens, CONTEXT - len(prompt))
        ids = reference(prompt, room, () if opening.sampling.ignore_eos else self._ends)
        for place, token in enumerate(ids, len(prompt)):
            yield Verdict(position=place, tokens=(token,), drafted=0, accepted=0, grant=LOCAL, mode=Mode.LOCAL)
        ended = bool(ids) and ids[-1] in self._ends and not opening.sampling.ignore_eos
        yield Finished(FinishReason.STOP if ended else FinishReason.LENGTH, Usage(len(prompt), len(ids), 0))


async def undisturbed(request: GenerationRequest, ends: Sequence[int]) -> tuple[list[int], str, FinishReason]:
    """Ids, text and reason that the request must get."""
    ids: list[int] = []
    text: list[str] = []
    async for event in TextGenerator(Alone(ends), Letters()).generate(request):  # type: ignore[arg-type]
        match event:
            case Tokens():
                ids += event.token_ids
                text.append(event.text)
            case Completed():
                return ids, "".join(text), event.reason
    raise AssertionError("it never ended")
