"""The drafter's token source: every generation becomes a drafting session with a verifier, and further ones should it be
lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import numpy as np

from drafter.early_stop import EarlyStop
from drafter.observer import Observer, Silent
from drafter.pace import Pace
from drafter.resume import Generation, Patience
from drafter.session import DraftingSession
from drafter.speculators import Speculator
from specfleet.core.clock import Clock
from specfleet.core.protocol import MAX_DRAFT_TOKENS, Open, Verdict, VerifierConnection, VerifyResponse
from specfleet.core.trace import Tracer
from specfleet.core.types import ModelInfo
from specfleet.core.vocabulary import Vocabulary


class Drafter:
    """One connection (to a verifier, or a Router over several), one speculator, any number of generations."""

    def __init__(
        self,
        connection: VerifierConnection,
        speculator: Speculator,
        vocabulary: Vocabulary,
        clock: Clock,
        observer: Observer | None = None,
        patience: Patience | None = None,
        rng: np.random.Generator | None = None,
        *,
        ahead: bool = True,
        early: EarlyStop | None = None,
        tracer: Tracer | None = None,
        trees: bool = False,
        max_draft: int = MAX_DRAFT_TOKENS,
    ) -> None:
        """`rng`: for pauses before a generation that lost its verifier goes on. `ahead` and what follows: see DraftingSession;
        what is known of guesses is one for all generations."""
        self._connection = connection
        self._speculator = speculator
        self._digest = vocabulary.digest()
        self._clock = clock
        self._observer = observer or Silent()
        self._ahead = ahead
        self._early = early
        self._tracer = tracer
        self._trees = trees
        self._max_draft = max_draft
        self._model: ModelInfo | None = None
        self._pace = Pace()
        self._patience = patience or Patience()
        self._rng = rng or np.random.default_rng()

    async def model(self) -> ModelInfo:
        """The target, asked for once: should the verifier come back with another one, `Open` is refused."""
        if self._model is None:
            self._model = await self._connection.model()
        return self._model

    async def run(self, opening: Open) -> AsyncIterator[VerifyResponse]:
        """The verifier's messages for one generation, while the speculator guesses ahead."""
        opening = replace(opening, vocabulary_digest=self._digest)
        generation = Generation(opening, self._session, self._patience, self._clock, self._rng, self._observer)
        start, last = self._clock(), 0.0
        async with aclosing(generation.run()) as messages:
            async for message in messages:
                if isinstance(message, Verdict):
                    now = self._clock()
                    if last:
                        self._observer.tokens(len(message.tokens), now - last)
                    else:
                        self._observer.first_token(now - start)
                    last = now
                yield message

    def _session(self, opening: Open) -> DraftingSession:
        pace = self._pace
        opening = replace(
            opening,
            draft_seconds_per_token=pace.told_draft_seconds(self._clock()),
            round_trip_seconds=pace.round_trip.value,
        )
        return DraftingSession(
            opening,
            self._connection,
            self._speculator,
            self._clock,
            self._observer,
            pace,
            ahead=self._ahead,
            early=self._early,
            tracer=self._tracer,
            trees=self._trees,
            max_draft=self._max_draft,
        )
