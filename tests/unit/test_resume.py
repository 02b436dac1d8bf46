"""A generation that loses its verifier goes on where it was: same text, in time, and only where that can help."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from drafter.observer import Silent
from drafter.resume import LONGEST_PAUSE, Patience
from drafter.source import Drafter
from drafter.speculators.ngram import Ngram
from simulator.clock import run
from specfleet.core.errors import (
    Cancelled,
    ConnectionError_,
    InternalError,
    InvalidRequest,
    ModelMismatch,
    Overloaded,
    QuotaExceeded,
    SpecfleetError,
    StreamInterrupted,
    Unavailable,
)
from specfleet.core.protocol import Finished, Open, Opened, Verdict, VerifyRequest, VerifyResponse
from specfleet.core.types import LOCAL, FinishReason, Load, Mode, ModelInfo, SamplingParams, Usage
from specfleet.core.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("a", "b", "c"), ())
MODEL = ModelInfo("m", 3, VOCABULARY.digest(), 100, ())
PROMPT = (7, 8)
TEXT = tuple(range(100, 110))
"""What the target writes, ten tokens."""


@dataclass
class Scripted:
    """A VerifierConnection with one act per stream: the error it refuses with, or how many tokens it gives before which
    error. Behind the last act everything goes well. `late`: seconds for each message."""

    acts: list[SpecfleetError | tuple[int, SpecfleetError | None]] = field(default_factory=list)
    late: float = 0.01
    openings: list[Open] = field(default_factory=list)
    opened_at: list[float] = field(default_factory=list)
    target: str = "v:1"

    async def verify(self) -> Stream:
        return Stream(self)

    async def model(self) -> ModelInfo:
        return MODEL

    async def load(self) -> Load:
        return Load(0, 0, 100, 0.01)

    async def tokenizer_files(self) -> dict[str, bytes]:
        return {}

    async def close(self) -> None: ...

    async def play(self, opening: Open) -> AsyncIterator[VerifyResponse]:
        self.openings.append(opening)
        self.opened_at.append(asyncio.get_running_loop().time())
        act = self.acts.pop(0) if self.acts else (len(TEXT), None)
        if isinstance(act, SpecfleetError):
            raise act
        count, error = act
        yield Opened(grant=LOCAL, model=MODEL, prompt_tokens=2, cached_tokens=0, verifier=self.target)
        for place in range(len(opening.output), min(len(opening.output) + count, len(TEXT))):
            yield verdict(place, TEXT[place : place + 1])
        if error is not None:
            raise error
        yield Finished(FinishReason.LENGTH, Usage(2, len(TEXT), 0))


def verdict(place: int, tokens: Sequence[int]) -> Verdict:
    position = len(PROMPT) + place
    return Verdict(position=position, tokens=tuple(tokens), drafted=0, accepted=0, grant=LOCAL, mode=Mode.LOCAL)


@dataclass
class Stream:
    connection: Scripted
    messages: AsyncIterator[VerifyResponse] | None = None

    async def send(self, message: VerifyRequest) -> None:
        if isinstance(message, Open):
            self.messages = self.connection.play(message)

    async def receive(self) -> VerifyResponse | None:
        assert self.messages is not None
        await asyncio.sleep(self.connection.late)
        return await anext(self.messages, None)

    def cancel(self) -> None: ...


class Counts(Silent):
    def __init__(self) -> None:
        self.resumes = 0
        self.finished: list[FinishReason] = []

    def resumed(self) -> None:
        self.resumes += 1

    def session_finished(self, reason: FinishReason) -> None:
        self.finished.append(reason)


@dataclass
class Played:
    tokens: list[int]
    seconds: float
    counts: Counts
    error: SpecfleetError | None = None


def play(connection: Scripted, patience: Patience | None = None, seed: int = 0) -> Played:
    """One generation in virtual time."""

    async def main() -> Played:
        counts, clock = Counts(), asyncio.get_running_loop().time
        rng = np.random.default_rng(seed)
        drafter = Drafter(connection, Ngram(), VOCABULARY, clock, counts, patience, rng)
        opening = Open(prompt=PROMPT, sampling=SamplingParams(max_tokens=len(TEXT), temperature=0.0))
        tokens: list[int] = []
        try:
            async for message in drafter.run(opening):
                if isinstance(message, Verdict):
                    known = len(PROMPT) + len(tokens) - message.position
                    assert known >= 0, "a token was lost"
                    tokens += message.tokens[known:]
        except SpecfleetError as error:
            return Played(tokens, clock(), counts, error)
        return Played(tokens, clock(), counts)

    return run(main())


def gone() -> ConnectionError_:
    return ConnectionError_("cannot reach v:1")


LOSSES = [gone(), Unavailable("draining"), StreamInterrupted("broke"), Cancelled("time is up")]


@pytest.mark.parametrize("error", LOSSES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("at", [0, 1, 9, 10])
def test_a_lost_verifier_is_survived(error: SpecfleetError, at: int) -> None:
    """Lost behind any number of tokens, the generation opens again with just these, and the text is whole."""
    connection = Scripted([(at, error)])
    played = play(connection)
    assert list(TEXT) == played.tokens
    assert [(), TEXT[:at]] == [one.output for one in connection.openings]
    assert (1, [FinishReason.LENGTH]) == (played.counts.resumes, played.counts.finished)


def test_a_verifier_that_ends_the_stream_without_a_word_is_survived() -> None:
    """The end of the messages before Finished is a broken stream, too."""

    class Ending(Scripted):
        async def play(self, opening: Open) -> AsyncIterator[VerifyResponse]:
            async for message in super().play(opening):
                if isinstance(message, Finished) and len(self.openings) == 1:
                    return
                yield message

    played = play(Ending())
    assert (list(TEXT), 1) == (played.tokens, played.counts.resumes)


def test_many_losses_are_survived() -> None:
    """A verifier that dies after every token: ten sessions, no token twice."""
    connection = Scripted([(1, gone())] * 9)
    played = play(connection, Patience(resume=3.0))
    assert list(TEXT) == played.tokens
    assert [TEXT[:done] for done in range(10)] == [one.output for one in connection.openings]


@pytest.mark.parametrize(
    "error", [InvalidRequest("no"), ModelMismatch("another"), InternalError("ours")], ids=lambda one: type(one).__name__
)
def test_refusals_are_final(error: SpecfleetError) -> None:
    """What is wrong stays wrong: nobody is asked again, before or after the first token."""
    for acts in ([error], [(3, gone()), error]):
        connection = Scripted(list(acts))
        played = play(connection)
        assert error is played.error
        assert len(acts) == len(connection.openings)
        assert [FinishReason.ERROR] == played.counts.finished


@pytest.mark.parametrize("error", [Overloaded("full", retry_after=3.0), QuotaExceeded("yours", retry_after=3.0)])
def test_who_was_let_in_waits_when_there_is_no_room(error: SpecfleetError) -> None:
    """On re-opening a refusal for now is waited out for as long as it says; at first it is the caller's to deal with."""
    connection = Scripted([(3, gone()), error])
    played = play(connection)
    assert list(TEXT) == played.tokens
    assert 3.0 <= connection.opened_at[2] - connection.opened_at[1] <= 3.0 + LONGEST_PAUSE
    assert error is play(Scripted([error])).error


def test_no_room_for_longer_than_there_is_patience() -> None:
    """Waiting that cannot end in time does not begin."""
    played = play(Scripted([(3, gone()), Overloaded("full", retry_after=30.0)]), Patience(resume=20.0))
    assert isinstance(played.error, StreamInterrupted)
    assert 30.0 == played.error.retry_after
    assert played.seconds < 1.0


def test_patience_ends() -> None:
    """Nobody there for `resume` seconds: StreamInterrupted says how far it came, and why. Before the first opening it is
    `open` seconds, and the error is the connection's own."""
    played = play(Scripted([(3, gone()), *[gone()] * 1000]), Patience(resume=20.0))
    assert isinstance(played.error, StreamInterrupted)
    assert "after 3 tokens" in played.error.message and "cannot reach v:1" in played.error.message
    assert {"completion_tokens": "3"} == played.error.details
    assert 20.0 <= played.seconds < 21.0
    played = play(Scripted([gone()] * 1000), Patience(open=2.0))
    assert isinstance(played.error, ConnectionError_)
    assert 2.0 <= played.seconds < 3.0


def test_patience_begins_anew_with_every_token() -> None:
    """But not with Opened: a verifier that lets in and dies of it helps nobody."""
    halves = [gone()] * 8 + [(1, gone())]
    assert list(TEXT) == play(Scripted([(1, gone()), *halves * 9]), Patience(resume=30.0)).tokens
    played = play(Scripted([(3, gone()), *[(0, gone())] * 1000]), Patience(resume=20.0, deaths=1000))
    assert isinstance(played.error, StreamInterrupted)
    assert 20.0 <= played.seconds < 21.0


def test_what_kills_its_verifiers_ends() -> None:
    """A generation that every verifier is lost with before a token comes is given up after so many; one token between them,
    and they count anew."""
    connection = Scripted([(3, gone()), *[(0, gone())] * 1000])
    played = play(connection, Patience(deaths=5))
    assert isinstance(played.error, StreamInterrupted)
    assert 1 + 5 + 1 == len(connection.openings)
    acts: list[SpecfleetError | tuple[int, SpecfleetError | None]] = [*[(0, gone())] * 5, (1, gone())]
    assert list(TEXT) == play(Scripted(acts * 9), Patience(deaths=5)).tokens


def test_pauses_grow_are_bounded_and_drawn_from_the_seed() -> None:
    """Full jitter: from zero up to a bound that doubles, the same for the same seed, other ones for another."""

    def pauses(seed: int) -> list[float]:
        connection = Scripted([gone()] * 1000, late=0.0)
        play(connection, Patience(open=300.0), seed)
        return [b - a for a, b in zip(connection.opened_at, connection.opened_at[1:], strict=False)]

    drawn = pauses(1)
    assert drawn == pauses(1) != pauses(2)
    assert all(pause <= bound for pause, bound in zip(drawn, (0.05, 0.1, 0.2, 0.4), strict=False))
    assert 0.8 * LONGEST_PAUSE / 2 < sum(drawn[10:]) / len(drawn[10:]) < 1.2 * LONGEST_PAUSE / 2
    assert max(drawn) <= LONGEST_PAUSE


def test_closing_while_it_waits_ends_it() -> None:
    """A caller that leaves during a pause is not kept, and counts as cancelled."""

    async def main() -> Counts:
        counts, clock = Counts(), asyncio.get_running_loop().time
        drafter = Drafter(Scripted([(3, gone()), *[gone()] * 99]), Ngram(), VOCABULARY, clock, counts)
        opening = Open(prompt=PROMPT, sampling=SamplingParams(max_tokens=10, temperature=0.0))

        async def read() -> None:
            async for _ in drafter.run(opening):
                pass

        await until(asyncio.create_task(read()), 5.0)
        return counts

    async def until(task: asyncio.Task[None], seconds: float) -> None:
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert [FinishReason.CANCELLED] == run(main()).finished
