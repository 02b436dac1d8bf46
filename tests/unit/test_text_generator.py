"""TextGenerator: text in, text out over a scripted source of verdicts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from specfleet.core.errors import (
    InvalidRequest,
    PositionGap,
    PromptTooLong,
    StreamInterrupted,
    Unavailable,
    UnknownModel,
)
from specfleet.core.generation import ChatMessage, Completed, Event, GenerationRequest, Started, Tokens
from specfleet.core.protocol import Finished, Open, Opened, Verdict
from specfleet.core.types import FinishReason, Grant, Mode, ModelInfo, SamplingParams, TokenKind, Usage
from specfleet.text import TextGenerator, Tokenizer
from specfleet.text.generator import kinds
from support.text import files

TOKENIZER = Tokenizer.from_files(files())
MODEL = ModelInfo("tiny", len(TOKENIZER.vocabulary().tokens), b"", 64, (0,), policy="fixed:4")
GRANT = Grant(Mode.ROUND, 4)
OPENED = Opened(grant=GRANT, model=MODEL, prompt_tokens=1, cached_tokens=5, verifier="v:1")
PROMPT = "the"
AT = len(TOKENIZER.encode(PROMPT))
ACCEPTED, RECOVERED, BONUS, TARGET = TokenKind.ACCEPTED, TokenKind.RECOVERED, TokenKind.BONUS, TokenKind.TARGET


class Script:
    """A TokenSource that says what it is told to. `opening` is what it was asked, `closed` whether it was closed."""

    def __init__(self, *messages: Opened | Verdict | Finished | Exception) -> None:
        self.messages = messages
        self.opening: Open | None = None
        self.closed = False

    async def model(self) -> ModelInfo:
        return MODEL

    async def run(self, opening: Open) -> AsyncIterator[Opened | Verdict | Finished]:
        self.opening = opening
        try:
            for message in self.messages:
                if isinstance(message, Exception):
                    raise message
                yield message
        finally:
            self.closed = True


def verdict(position: int, tokens: list[int], drafted: int = 0, accepted: int = 0, **more: Any) -> Verdict:
    mode = Mode.ROUND if drafted else Mode.LOCAL
    return Verdict(
        position=position, tokens=tuple(tokens), drafted=drafted, accepted=accepted, grant=GRANT, mode=mode, **more
    )


def spoken(text: str, *, at: int = AT, size: int = 1) -> list[Verdict]:
    """A text as verdicts of `size` tokens each."""
    ids = TOKENIZER.encode(text)
    return [
        verdict(at + index, ids[index : index + size], size - 1, len(ids[index : index + size]) - 1)
        for index in range(0, len(ids), size)
    ]


def finished(reason: FinishReason = FinishReason.LENGTH) -> Finished:
    return Finished(reason, Usage())


def request(**more: Any) -> GenerationRequest:
    sampling = SamplingParams(
        max_tokens=40, **{key: more.pop(key) for key in ("stop", "stop_token_ids") if key in more}
    )
    given: dict[str, Any] = {"prompt": PROMPT} | more
    return GenerationRequest(sampling=given.pop("sampling", sampling), **given)


async def events(source: Script, asked: GenerationRequest) -> list[Event]:
    return [event async for event in TextGenerator(source, TOKENIZER, drafter="d").generate(asked)]


def text(found: list[Event]) -> str:
    return "".join(event.text for event in found if isinstance(event, Tokens))


def ids(found: list[Event]) -> list[int]:
    return [one for event in found if isinstance(event, Tokens) for one in event.token_ids]


def completed(found: list[Event]) -> Completed:
    assert isinstance(found[-1], Completed)
    return found[-1]


@pytest.mark.asyncio
async def test_a_generation_is_started_tokens_completed() -> None:
    """Started names everybody, each verdict is one event with its kinds, Completed has usage and speculation."""
    a, b, c, d = TOKENIZER.encode("a"), TOKENIZER.encode("b"), TOKENIZER.encode("c"), TOKENIZER.encode("d")
    source = Script(
        OPENED,
        verdict(AT, a),
        verdict(AT + 1, [*a, *b, *c], 2, 2, logprobs=(-1.0, -2.0, -3.0)),
        verdict(AT + 4, [*a, *d], 4, 1),
        finished(),
    )

    found = await events(source, request(request_id="r", service_class="gold"))

    assert found[:-1] == [
        Started("r", "tiny", "fixed:4", "v:1", "d", OPENED.prompt_tokens),
        Tokens(tuple(a), "a", (TARGET,), None, (1,), 0, Mode.LOCAL),
        Tokens((*a, *b, *c), "abc", (ACCEPTED, ACCEPTED, BONUS), (-1.0, -2.0, -3.0), (1, 1, 1), 2, Mode.ROUND),
        Tokens((*a, *d), "ad", (ACCEPTED, RECOVERED), None, (1, 1), 4, Mode.ROUND),
    ]
    done = completed(found)
    assert (done.reason, done.usage) == (FinishReason.LENGTH, Usage(AT, 6, 5))
    assert (
        done.speculation.rounds,
        done.speculation.drafted,
        done.speculation.accepted,
        done.speculation.target_only_tokens,
        done.speculation.lengths,
    ) == (2, 6, 3, 1, [2, 4])
    assert done.speculation.modes == {"local": 1, "stream": 0, "round": 2}
    assert source.opening is not None
    assert (tuple(TOKENIZER.encode(PROMPT)), "r", "gold") == (
        source.opening.prompt,
        source.opening.request_id,
        source.opening.service_class,
    )
    assert source.closed


@pytest.mark.parametrize(
    ("count", "drafted", "accepted", "expected"),
    [
        (1, 0, 0, (TARGET,)),
        (3, 2, 2, (ACCEPTED, ACCEPTED, BONUS)),
        (3, 4, 2, (ACCEPTED, ACCEPTED, RECOVERED)),
        (1, 4, 0, (RECOVERED,)),
        (2, 4, 3, (ACCEPTED, ACCEPTED)),
        (2, 2, 2, (ACCEPTED, ACCEPTED)),
    ],
)
def test_kinds(count: int, drafted: int, accepted: int, expected: tuple[TokenKind, ...]) -> None:
    """accepted tokens and then one of the target's own, unless a stop condition cut that off."""
    assert expected == kinds(verdict(0, [1] * count, drafted, accepted))


@pytest.mark.asyncio
async def test_characters_are_whole_and_lengths_add_up() -> None:
    """Text never ends inside a character, and text_lengths cut it into one piece per token."""
    found = await events(Script(OPENED, *spoken("é😀 the", size=3), finished()), request())

    tokens = [event for event in found if isinstance(event, Tokens)]
    assert text(found) == "é😀 the"
    for event in tokens:
        assert "\ufffd" not in event.text
        assert len(event.token_ids) == len(event.kinds) == len(event.text_lengths)
        assert event.text == "".join(event.pieces)


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [1, 2, 5])
async def test_stop_string_ends_text_and_source(size: int) -> None:
    """Text ends before the stop string; ids end with the token that completes it; the source is closed at once."""
    whole = "ab cd ef gh"
    source = Script(OPENED, *spoken(whole, size=size), finished())

    found = await events(source, request(stop=("d e", "zzz")))

    kept = next(n for n in range(20) if "d e" in TOKENIZER.decode(TOKENIZER.encode(whole)[:n]))
    assert text(found) == "ab c"
    assert TOKENIZER.encode(whole)[:kept] == ids(found)
    assert completed(found).reason is FinishReason.STOP
    assert kept == completed(found).usage.completion_tokens
    assert source.closed


@pytest.mark.asyncio
async def test_text_held_back_comes_when_the_stop_string_does_not() -> None:
    """What could have begun a stop string, or a character, is shown at the end."""
    source = Script(OPENED, *spoken("ab c"), verdict(AT + 4, TOKENIZER.encode("😀")[:1]), finished())

    found = await events(source, request(stop=(" cd",)))

    assert text(found) == "ab c\ufffd"
    assert Tokens((), " c\ufffd") == found[-2]


@pytest.mark.asyncio
async def test_end_of_text_gives_no_text() -> None:
    """End-of-text and stop ids are committed ids without text."""
    (x,) = TOKENIZER.encode("x")
    eos = await events(Script(OPENED, *spoken("ab"), verdict(AT + 2, [0]), finished(FinishReason.STOP)), request())
    stop = await events(
        Script(OPENED, *spoken("ab"), verdict(AT + 2, [x]), finished(FinishReason.STOP)), request(stop_token_ids=(x,))
    )

    for found, last in ((eos, 0), (stop, x)):
        assert text(found) == "ab"
        assert [*TOKENIZER.encode("ab"), last] == ids(found)
        assert completed(found).reason is FinishReason.STOP


@pytest.mark.asyncio
@pytest.mark.parametrize("broken_at", range(12))
async def test_resumed_text_goes_on_where_it_broke(broken_at: int) -> None:
    """Cut anywhere, the first part's text and the resumed part's are the whole text: nothing twice, nothing missing."""
    whole = "é ab😀cd xy"
    verdicts = spoken(whole)
    asked = request(stop=("abz", "cd xyz"))
    broken_at = min(broken_at, len(verdicts))

    with pytest.raises(StreamInterrupted):
        await events(Script(OPENED, *verdicts[:broken_at]), asked)
    unbroken = await events(Script(OPENED, *verdicts[:broken_at], finished()), asked)
    first = [event for event in unbroken if isinstance(event, Tokens) and event.token_ids]
    source = Script(OPENED, *verdicts[broken_at:], finished())
    second = await events(source, replace(asked, output_token_ids=tuple(TOKENIZER.encode(whole)[:broken_at])))

    assert whole == text([*first]) + text(second)
    assert TOKENIZER.encode(whole)[broken_at:] == ids(second)
    assert len(verdicts) == completed(second).usage.completion_tokens
    assert source.opening is not None
    assert tuple(TOKENIZER.encode(whole)[:broken_at]) == source.opening.output


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("output", "more", "reason"),
    [
        ("ab", {"sampling": SamplingParams(max_tokens=2)}, FinishReason.LENGTH),
        ("abc", {"stop": ("bc",)}, FinishReason.STOP),
        ("abc", {"stop_token_ids": tuple(TOKENIZER.encode("c"))}, FinishReason.STOP),
    ],
)
async def test_resuming_what_is_finished_only_completes_it(
    output: str, more: dict[str, Any], reason: FinishReason
) -> None:
    """When only `Completed` got lost, the model is not asked again."""
    source = Script()

    found = await events(source, request(output_token_ids=tuple(TOKENIZER.encode(output)), **more))

    assert [Started, Completed] == [type(event) for event in found]
    assert reason is completed(found).reason
    assert source.opening is None


@pytest.mark.asyncio
async def test_source_that_moves_counts_as_resumed() -> None:
    """Each further Opened is a resume; a verdict that repeats known tokens adds only the new ones."""
    first, second = spoken("abcdef", size=3)
    again = verdict(AT + 1, [*first.tokens[1:], *second.tokens[:1]])

    found = await events(Script(OPENED, first, OPENED, again, finished()), request())

    assert text(found) == "abcd"
    assert completed(found).speculation.resumes == 1


@pytest.mark.asyncio
async def test_gap_is_an_error() -> None:
    """A verdict beyond what is known is never shown."""
    with pytest.raises(PositionGap, match=f"position {AT + 3}, tokens are known up to {AT}"):
        await events(Script(OPENED, verdict(AT + 3, [1])), request())


@pytest.mark.asyncio
async def test_closing_the_generator_closes_the_source() -> None:
    """Closing the iterator ends the session now, not when the garbage collector comes by."""
    source = Script(OPENED, *spoken("abc"))
    async with aclosing(TextGenerator(source, TOKENIZER).generate(request())) as generation:  # type: ignore[type-var]
        async for event in generation:
            if isinstance(event, Tokens):
                break

    assert source.closed


@pytest.mark.asyncio
async def test_errors_of_the_source_come_through() -> None:
    """What the source raises is raised, and the source is closed."""
    source = Script(OPENED, Unavailable("draining"))

    with pytest.raises(Unavailable, match="draining"):
        await events(source, request())
    assert source.closed


@pytest.mark.asyncio
async def test_prompts_come_as_text_chat_or_ids() -> None:
    """Text is encoded, a chat goes through the template, ids are taken as they are; long text is encoded alike."""
    long = "the house " * 3_000
    chat = (ChatMessage("user", "a"),)
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"prompt": "the"}, TOKENIZER.encode("the")),
        ({"prompt": None, "chat": chat}, TOKENIZER.apply_chat(chat)),
        ({"prompt": None, "prompt_token_ids": (5, 6)}, [5, 6]),
    ]

    for given, expected in cases:
        source = Script(OPENED, finished())
        await events(source, request(**given))
        assert source.opening is not None
        assert tuple(expected) == source.opening.prompt
    with pytest.raises(PromptTooLong, match=f"prompt has {len(TOKENIZER.encode(long))} tokens"):
        await events(Script(), request(prompt=long))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"prompt_token_ids": (1,) * 64},
            PromptTooLong,
            "prompt has 64 tokens, the context of tiny holds 64.*by 1 tok",
        ),
        ({"prompt_token_ids": (1, 5000)}, InvalidRequest, "prompt_token_ids: holds 5000, must be below"),
        ({"prompt_token_ids": (1,), "output_token_ids": (-1,)}, InvalidRequest, "output_token_ids: holds -1"),
        ({"prompt_token_ids": (1,), "model": "huge"}, UnknownModel, "'huge' is not served here, 'tiny' is"),
    ],
)
async def test_bad_requests_start_nothing(given: dict[str, Any], error: type[Exception], message: str) -> None:
    """What the model cannot take is refused, with value and limit, before a session is opened."""
    source = Script()

    with pytest.raises(error, match=message):
        await events(source, request(prompt=None, **given))
    assert source.opening is None
