"""How often a draft model is right about a verifier's text, and which length of draft that pays for.

The verifier writes texts alone, greedily, and the draft model is then asked at every place of them what it would have
guessed: one forward pass a text. Accepted tokens are text, so of a draft from any place of it exactly the guesses that are
right in a row there would have been accepted. No draft crosses the network, and no policy of the verifier's is in the way.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from specfleet.core.clock import Clock
from specfleet.core.errors import InternalError
from specfleet.core.protocol import Finished, Open, Opened, Verdict, VerifierConnection
from specfleet.core.step import StepItem
from specfleet.core.types import SamplingParams
from specfleet.core.vocabulary import Vocabulary
from specfleet.engine import TorchEngine

CHUNK = 256
LONGEST = 16
"""Longest draft looked at."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A text that a verifier wrote alone."""

    tokens: tuple[int, ...]
    start: int
    """Tokens of it that are the prompt."""
    round_trip: float
    """Seconds to the verifier and back."""
    token_seconds: float
    """Between two of its tokens: a step, while nobody else is served."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds."""

    draft: float
    """Per drafted token."""
    round_trip: float
    step: float
    """Of the verifier, one token in it."""
    token: float = 0.0
    """Each token more in it."""


async def listen(
    connection: VerifierConnection, vocabulary: Vocabulary, prompt: Sequence[int], tokens: int, clock: Clock
) -> Heard:
    """What the verifier writes behind `prompt`, up to `tokens` tokens. Raises what it refuses the request with."""
    stream = await connection.verify()
    opening = Open(
        prompt=tuple(prompt),
        sampling=SamplingParams(max_tokens=tokens, temperature=0.0),
        vocabulary_digest=vocabulary.digest(),
        can_draft=False,
    )
    text, times, trip = list(prompt), [], 0.0
    try:
        asked = clock()
        await stream.send(opening)
        while not isinstance(message := await stream.receive(), Finished):
            now = clock()
            match message:
                case Opened():
                    trip = max(0.0, now - asked - message.waited_seconds)
                case Verdict():
                    text += message.tokens
                    times.append(now)
                case _:
                    raise InternalError("the verifier's stream ended before the text did; ask again")
    finally:
        stream.cancel()
    pauses = [later - earlier for earlier, later in pairwise(times)]
    return Heard(tuple(text), len(prompt), trip, statistics.median(pauses) if pauses else 0.0)


class Guessed(NamedTuple):
    """One place of a text."""

    right: bool
    """The model would have guessed the token that stands there."""
    odds: float
    """Logarithm of the odds that the model gives its guess."""


def guessed(engine: TorchEngine, heard: Heard) -> list[Guessed]:
    """For each token behind the prompt, what the model would have guessed."""
    text, start = heard.tokens[: engine.model.context_length], heard.start
    if len(text) <= start:
        return []
    engine.open(0, text)
    try:
        greedy = SamplingParams(temperature=0.0)
        while (done := engine.length(0)) < start - 1:
            engine.step_sync([StepItem(0, text[done : min(done + CHUNK, start - 1)], greedy, sample=False)])
        engine.truncate(0, start - 1)
        rest = text[start - 1 : -1]
        logits = engine.forward([StepItem(0, rest, greedy, draft=len(rest) - 1)])
        best, guesses = logits.max(-1)
        others = logits.scatter(-1, guesses[:, None], -math.inf).logsumexp(-1)
        odds = (best - others).tolist()
    finally:
        engine.close(0)
    right = [guess == token for guess, token in zip(guesses.tolist(), text[start:], strict=True)]
    return list(map(Guessed, right, odds))


def told_apart(guesses: Sequence[Guessed]) -> float | None:
    """How well a model's confidence tells its right guesses from its wrong ones: the distance of their mean log-odds, in
    standard deviations of the two together; 0 at least. None where there are not two of each."""
    both = [[one.odds for one in guesses if one.right is right] for right in (True, False)]
    if min(map(len, both)) < 2:
        return None
    right, wrong = map(statistics.fmean, both)
    spread = math.sqrt(sum(statistics.pvariance(odds) * len(odds) for odds in both) / len(guesses))
    return max(0.0, right - wrong) / spread if spread else None


def tokens_a_round(texts: Sequence[Sequence[bool]], length: int) -> float:
    """What a round of `length` guesses commits on average: those right in a row, and one of the target's own. Rounds follow
    one another through each text, as in use; one that the text's end cuts short does not count. 1 where there is none."""
    rounds = committed = 0
    for right in texts:
        at = 0
        while at + length < len(right):
            accepted = next((n for n, one in enumerate(right[at : at + length]) if not one), length)
            rounds += 1
            committed += accepted + 1
            at += accepted + 1
    return committed / rounds if rounds else 1.0


def speeds(texts: Sequence[Sequence[bool]], costs: Costs, longest: int = LONGEST) -> list[float]:
    """Tokens a second with drafts of 0, 1, … tokens; 0 is the verifier alone, which streams and waits for nobody."""
    found = [1.0 / costs.step]
    for length in range(1, longest + 1):
        seconds = costs.round_trip + costs.step + length * (costs.draft + costs.token)
        found.append(tokens_a_round(texts, length) / seconds)
    return found
