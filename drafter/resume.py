"""One generation over as many drafting sessions as it takes: when a verifier is lost, the next session opens with what is
committed, there or elsewhere.

    session 1   Opened  Verdict  Verdict  x
    pause                                    ...
    session 2                                   Opened  Verdict  ...  Finished

The verifier is the source of truth and holds nothing that the committed ids do not say, so a match-rule text goes on exactly.
Where the next session opens is its connection's to decide (drafter.router).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

import numpy as np

from drafter.observer import Observer
from drafter.session import DraftingSession
from specfleet.core.clock import Clock
from specfleet.core.errors import (
    Cancelled,
    ConnectionError_,
    Overloaded,
    QuotaExceeded,
    SpecfleetError,
    StreamInterrupted,
    Unavailable,
)
from specfleet.core.protocol import Finished, Open, Opened, Verdict
from specfleet.core.types import FinishReason

log = logging.getLogger(__name__)

LOST = (ConnectionError_, Unavailable, StreamInterrupted, Cancelled)
"""What another verifier, or the same one later, can make good. Cancelled: by the verifier, whose time to drain was up."""
BUSY = (Overloaded, QuotaExceeded)
"""Refusals that pass. A generation that nobody has let in yet is told of them; one that was let in waits."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Seconds; the longest pause doubles from the one to the other, and each is drawn from zero on (full jitter), so that the
sessions of a lost verifier do not come back all at once."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to look for a verifier, in seconds since there was one. A caller's deadline ends it sooner: it cancels."""

    open: float = 5.0
    """Before the generation was first opened: its caller may have another drafter to go to."""
    resume: float = 300.0
    """After that: time for a verifier to restart, and load its model."""
    deaths: int = 10
    """Verifiers that let it in and were lost before a token came, one after the other. It may be what kills them."""


class Generation:
    """`session` makes a drafting session for an Open; clock and randomness are injected, for virtual time."""

    __slots__ = (
        "_clock",
        "_deaths",
        "_failures",
        "_lost_at",
        "_observer",
        "_opened",
        "_opening",
        "_output",
        "_patience",
        "_rng",
        "_session",
    )

    def __init__(
        self,
        opening: Open,
        session: Callable[[Open], DraftingSession],
        patience: Patience,
        clock: Clock,
        rng: np.random.Generator,
        observer: Observer,
    ) -> None:
        self._opening = opening
        self._session = session
        self._patience = patience
        self._clock = clock
        self._rng = rng
        self._observer = observer
        self._output = list(opening.output)
        self._opened = False
        """Some verifier has let it in."""
        self._lost_at: float | None = None
        """When it was first lost since a token came."""
        self._failures = self._deaths = 0
        """Since then: sessions lost, and those of them that had been let in."""

    async def run(self) -> AsyncGenerator[Opened | Verdict | Finished]:
        """The verifiers' messages in order, Opened again after each change. Closing the iterator ends the session.

        Raises:
            StreamInterrupted: nobody could go on with it in time; the last error is its cause.
            SpecfleetError: whatever it was refused with.
        """
        reason = FinishReason.CANCELLED
        self._observer.session_opened()
        try:
            while True:
                session = self._session(replace(self._opening, output=tuple(self._output)))
                try:
                    async with aclosing(session.run()) as messages:
                        async for message in messages:
                            self._take(message)
                            if isinstance(message, Finished):
                                reason = message.reason
                            yield message
                    return
                except (*LOST, *BUSY) as error:
                    await self._pause_after(error)
        except Exception:
            reason = FinishReason.ERROR
            raise
        finally:
            self._observer.session_finished(reason)

    def _take(self, message: Opened | Verdict | Finished) -> None:
        match message:
            case Verdict():
                known = len(self._opening.prompt) + len(self._output) - message.position
                self._output += message.tokens[known:]
                # Not Opened: a verifier that lets in, and dies of it, does not count as one that goes on.
                self._lost_at, self._failures, self._deaths = None, 0, 0
            case Opened():
                if self._opened:
                    self._observer.resumed()
                self._opened = True
                self._deaths += 1

    async def _pause_after(self, error: SpecfleetError) -> None:
        """Wait before the next session. Raises when there is to be none."""
        if isinstance(error, BUSY) and not self._opened:
            raise error
        now = self._clock()
        if self._lost_at is None:
            self._lost_at = now
        left = self._lost_at + (self._patience.resume if self._opened else self._patience.open) - now
        at_least = error.retry_after or 0.0
        if left <= at_least or self._deaths > self._patience.deaths:
            raise self._given_up(error) from error
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures, 10))
        pause = at_least + float(self._rng.uniform(0.0, longest))
        self._failures += 1
        fields = {"request_id": self._opening.request_id, "tokens": len(self._output), "error": error.message}
        log.info("verifier lost", extra=fields)
        await asyncio.sleep(min(pause, left))

    def _given_up(self, error: SpecfleetError) -> SpecfleetError:
        if not self._opened:
            return error
        return StreamInterrupted(
            f"lost its verifier after {len(self._output)} tokens, and found none to go on with: {error.message}",
            details={"completion_tokens": str(len(self._output))},
            request_id=self._opening.request_id,
            retry_after=error.retry_after,
        )
