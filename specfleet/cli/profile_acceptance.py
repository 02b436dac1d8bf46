"""`specfleet profile --drafter --verifier …`: how often guesses are right about a verifier's text, and which length pays."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from specfleet.cli.table import table
from specfleet.core.errors import ConfigurationError
from specfleet.observability.progress import gauge, waiting

if TYPE_CHECKING:
    from scheduler.draft_time import DraftProfile
    from scheduler.step_profile import StepProfile
    from specfleet.engine import TorchEngine
    from specfleet.profiling.acceptance import Heard

TOKENS = 128
"""Of each text."""
SHOWN = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16)


@dataclass(frozen=True, slots=True)
class Against:
    """The verifier to measure acceptance against, and how to reach it."""

    verifier: str
    prompts: tuple[str, ...]
    step_profile: StepProfile | None
    verifier_ca: Path | None
    verifier_token: Path | None
    insecure: bool


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What a verifier's texts say of a draft model."""

    texts: list[list[bool]]
    """Of each place whether the model would have guessed it."""
    round_trip: float
    token_seconds: float
    """Of the verifier alone."""
    confidence: float | None
    """How well the model knows when it is right (`DraftProfile.confidence`)."""

    @property
    def rate(self) -> float:
        tested = sum(map(len, self.texts))
        return sum(map(sum, self.texts)) / tested


def measure(against: Against, model: str, engine: TorchEngine) -> Acceptance:
    """Let the verifier write, and look what `engine` would have guessed. Raises what the verifier refuses it with."""
    from specfleet.profiling.acceptance import guessed, told_apart

    heard = asyncio.run(_listen(against, model, engine.model.context_length))
    texts = [found for one in heard if (found := guessed(engine, one))]
    if not texts:
        raise ConfigurationError(
            f"--prompts: the verifier wrote nothing behind them that fits the draft model's context of "
            f"{engine.model.context_length} tokens; give shorter ones"
        )
    trip, pace = (statistics.median(values) for values in ((h.round_trip for h in heard), _paces(heard)))
    confidence = told_apart([place for text in texts for place in text])
    return Acceptance([[place.right for place in text] for text in texts], trip, pace, confidence)


def _paces(heard: Sequence[Heard]) -> list[float]:
    return [one.token_seconds for one in heard if one.token_seconds] or [0.0]


async def _listen(against: Against, model: str, context: int) -> list[Heard]:
    from drafter.vocabulary import check_vocabulary
    from specfleet.profiling.acceptance import listen
    from specfleet.text import Tokenizer
    from specfleet.wire.credentials import Credentials, token_file
    from specfleet.wire.tls import watched_tls
    from specfleet.wire.verification import GrpcVerifierConnection

    credentials = Credentials(
        token_file(against.verifier_token), watched_tls(against.verifier_ca, None, None), against.insecure
    )
    connection = GrpcVerifierConnection(against.verifier, credentials)
    try:
        tokenizer = Tokenizer.from_folder(model)
        target = await check_vocabulary(connection, tokenizer.vocabulary())
        most = min(context, target.context_length) - TOKENS
        prompts = [ids for text in against.prompts if 0 < len(ids := tokenizer.encode(text)) <= most]
        if not prompts:
            raise ConfigurationError(f"--prompts: all of them are longer than {most} tokens; give shorter ones")
        heard = []
        with waiting(f"listening to {against.verifier}") as tell:
            for number, prompt in enumerate(prompts):
                tell(f"listening to {against.verifier} {gauge(number / len(prompts))}")
                heard.append(await listen(connection, tokenizer.vocabulary(), prompt, TOKENS, time.perf_counter))
        return heard
    finally:
        await connection.close()


def report(against: Against, found: Acceptance, profile: DraftProfile) -> DraftProfile:
    """A table of lengths, and the profile with what it says."""
    from dataclasses import replace

    from specfleet.profiling.acceptance import Costs, speeds, tokens_a_round

    token = against.step_profile.per_token if against.step_profile else 0.0
    costs = Costs(profile.at(1), found.round_trip, found.token_seconds, token)
    by_length = speeds(found.texts, costs)
    best = max(range(len(by_length)), key=by_length.__getitem__)
    rows = [
        (
            str(length) if length else "none",
            f"{tokens_a_round(found.texts, length):.2f}",
            f"{by_length[length]:.1f}",
            f"{by_length[length] / by_length[0]:.2f}x" + (" best" if length == best else ""),
        )
        for length in sorted({*SHOWN, best})
    ]
    click.echo()
    click.echo(table(("draft", "tokens a round", "tokens/s", "of none"), rows))
    click.echo(
        f"\n{found.rate:.1%} of {sum(map(len, found.texts))} greedy tokens of {against.verifier} guessed right; "
        f"{found.round_trip * 1e3:.2f} ms to there and back, {found.token_seconds * 1e3:.2f} ms a token alone. One session in "
        f"rounds: best length {best}"
        + ("" if against.step_profile else ", if verifying a draft costs no more than a step")
    )
    confidence = None if found.confidence is None else round(found.confidence, 4)
    return replace(profile, acceptance=round(found.rate, 4), best_length=best, confidence=confidence)
