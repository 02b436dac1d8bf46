"""A generation on one verifier: a Verify stream, and guesses that keep ahead of it. When the stream breaks, the session is
over, and another one goes on (drafter.resume).

Two activities share a `Branch`: receiving verdicts (`run`) and drafting (`_draft`). Neither waits for the other; what a
verdict contradicts is dropped when its guesses land. The mode and length granted last decide what drafting does:

    LOCAL    nothing, the verifier decodes; now and then score its text, so that it knows when drafting would pay again
    ROUND    draft the granted number, send it as one message, wait for the verdict
    STREAM   draft on from its own guesses, send as they come, up to a bound beyond the confirmed text
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator

from drafter.branch import Branch
from drafter.observer import Observer, Silent
from drafter.pace import Pace
from drafter.speculators import Drafting, Speculator
from specfleet.core.clock import Clock
from specfleet.core.errors import InternalError, SpecfleetError, StreamInterrupted
from specfleet.core.protocol import ClientStream, Draft, Finished, Open, Opened, Shadow, Verdict, VerifierConnection
from specfleet.core.types import LOCAL, Grant, Mode

log = logging.getLogger(__name__)

FIRST_SHADOW, SHADOW_EVERY, SHADOW_TOKENS = 80, 128, 16
"""In LOCAL, after so many tokens, and every so many, the last so many are scored: one forward of a draft model each. Short
texts are left alone: the draft model would have to read their prompt for it."""
MOST_AHEAD = 48
"""In STREAM, tokens beyond the confirmed text at most, however far away the verifier is."""
COALESCE_SECONDS = 0.004
"""In STREAM, guesses that come faster than this share a message."""


class DraftingSession:
    """Transport, speculator and clock are injected, so that the same session runs in production and in virtual time."""

    def __init__(
        self,
        opening: Open,
        connection: VerifierConnection,
        speculator: Speculator,
        clock: Clock,
        observer: Observer | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._pace = pace or Pace()
        self._opening = opening
        self._connection = connection
        self._speculator = speculator
        self._clock = clock
        self._observer = observer or Silent()
        self._branch = Branch([*opening.prompt, *opening.output])
        self._shadow_at = len(self._branch.text) + FIRST_SHADOW
        """Length of the text from which on to score it, in LOCAL."""
        self._last = len(opening.prompt) + opening.sampling.max_tokens
        self._grant: Grant = LOCAL
        self._granted_at = 0.0
        self._verdict_at = 0.0
        """When the last verdict came for which the verifier had not waited."""
        self._answered = -1
        """In ROUND: length of the confirmed text for which the draft is complete."""
        self._sent_at = 0.0
        self._spent = 0.0
        """Seconds of drafting since the last message."""
        self._mute = False
        """Drafting failed; every round is answered with an empty draft from now on."""
        self._changed = asyncio.Event()

    async def run(self) -> AsyncGenerator[Opened | Verdict | Finished]:
        """The verifier's messages, in order, while drafting goes on beside. Closing the iterator ends the session."""
        stream = await self._connection.verify()
        drafting = None
        try:
            asked = self._clock()
            await stream.send(self._opening)
            opened = await self._first(stream)
            self._pace.round_trip.observe(self._clock() - asked - opened.waited_seconds)
            self._take_grant(opened.grant)
            drafting = asyncio.create_task(self._draft(stream))
            yield opened
            async for message in self._messages(stream, drafting):
                yield message
        finally:
            if drafting is not None:
                drafting.cancel()
                await asyncio.gather(drafting, return_exceptions=True)
            stream.cancel()

    async def _first(self, stream: ClientStream) -> Opened:
        opened = await stream.receive()
        if not isinstance(opened, Opened):
            raise InternalError(
                f"the verifier began with {type(opened).__name__} instead of Opened; versions may differ"
            )
        return opened

    async def _messages(self, stream: ClientStream, drafting: asyncio.Task[None]) -> AsyncIterator[Verdict | Finished]:
        while True:
            message = await self._receive(stream, drafting)
            match message:
                case Verdict():
                    self._take(message)
                    yield message
                case Finished():
                    yield message
                    return
                case None:
                    raise StreamInterrupted("the verifier ended the stream before the generation was finished")
                case Opened():
                    raise InternalError("the verifier opened the session twice")

    async def _receive(self, stream: ClientStream, drafting: asyncio.Task[None]) -> Opened | Verdict | Finished | None:
        """The next message. A drafting side that failed ends the session: it never ends by itself otherwise."""
        if drafting.done():
            drafting.result()
        return await stream.receive()

    def _take(self, verdict: Verdict) -> None:
        """A verdict moves the text on and says how to go on from there."""
        behind = len(self._branch.text) - verdict.position
        if behind < 0:
            raise InternalError(f"verdict at {verdict.position}, but the text ends at {len(self._branch.text)}")
        dropped = self._branch.confirm(verdict.tokens[behind:])
        if dropped:
            self._observer.discarded("contradicted", dropped)
        if verdict.drafted and self._sent_at:
            self._observer.round_trip(self._clock() - self._sent_at)
        self._take_grant(verdict.grant)
        if verdict.mode is not Mode.ROUND:
            if self._verdict_at:
                self._pace.step_seconds.observe(self._granted_at - self._verdict_at)
            self._verdict_at = self._granted_at

    def _take_grant(self, grant: Grant) -> None:
        now = self._clock()
        if self._granted_at:
            self._observer.mode_time(self._grant.mode, now - self._granted_at)
        self._grant, self._granted_at = grant, now
        self._changed.set()

    # --- the drafting side -----------------------------------------------------------------------------------------

    async def _draft(self, stream: ClientStream) -> None:
        drafting = self._speculator.start(self._opening.sampling)
        try:
            while True:
                self._changed.clear()
                wanted = self._wanted()
                if wanted > 0 and await self._extend(drafting, wanted):
                    await self._send_some(stream)
                elif self._shadows():
                    await self._shadow(drafting, stream)
                else:
                    await self._send_rest(stream)
                    await self._changed.wait()
        finally:
            drafting.close()

    def _shadows(self) -> bool:
        """Whether it is time to score what the verifier has written alone."""
        if self._grant.mode is not Mode.LOCAL or not self._opening.sampling.match_rule or self._mute:
            return False
        return len(self._branch.text) >= self._shadow_at

    async def _shadow(self, drafting: Drafting, stream: ClientStream) -> None:
        """Score the newest text, and report how much of it would have been guessed. Without a seed there is nothing to
        compare: which token a model would have chosen is chance."""
        text = list(self._branch.text)
        self._shadow_at = len(text) + SHADOW_EVERY
        try:
            matches = await drafting.score(text, SHADOW_TOKENS)
        except SpecfleetError as error:
            log.warning("scoring failed", extra={"request_id": self._opening.request_id, "error": error.message})
            return
        if matches is None:
            return
        pace = self._pace.draft_seconds.value
        await stream.send(
            Shadow(position=len(text), tested=SHADOW_TOKENS, accepted=matches, draft_seconds_per_token=pace)
        )

    def _wanted(self) -> int:
        """How many more tokens to guess now."""
        branch, grant = self._branch, self._grant
        # The verdict adds a token of the target's own, so the last one is never worth a guess.
        useful = 0 if self._mute else self._last - 1 - branch.end
        match grant.mode:
            case Mode.ROUND if self._answered != len(branch.text):
                return min(grant.length - len(branch.ahead), useful)
            case Mode.STREAM:
                return min(self._bound(grant) - len(branch.ahead), self._speculator.stride, useful)
            case _:
                return 0

    def _bound(self, grant: Grant) -> int:
        """In STREAM, how far beyond the confirmed text to guess: what one step may verify and the token it adds, and what is
        guessed while messages are on their way and the step is run. Without the latter whoever is far away would wait."""
        lead = self._pace.lead or grant.length
        return min(MOST_AHEAD, grant.length + 1 + lead)

    async def _extend(self, drafting: Drafting, wanted: int) -> bool:
        """Guess `wanted` more tokens; False if there is nothing to go by."""
        branch = self._branch
        base, version, start = branch.end, branch.version, self._clock()
        try:
            guesses = await drafting.draft(branch.belief, wanted)
        except SpecfleetError as error:
            # Guessing is only ever a help: without it the verifier writes the same text.
            log.warning("drafting failed", extra={"request_id": self._opening.request_id, "error": error.message})
            self._mute = True
            return False
        seconds = self._clock() - start
        self._spent += seconds
        if guesses:
            self._pace.draft_seconds.observe(seconds / len(guesses))
        self._observer.drafted(self._speculator.name, len(guesses), seconds)
        kept = branch.land(base, version, guesses)
        if kept < len(guesses):
            self._observer.discarded("overtaken", len(guesses) - kept)
        return bool(guesses)

    async def _send_some(self, stream: ClientStream) -> None:
        """After guessing: a ROUND sends once it is full, a STREAM what has gathered."""
        match self._grant.mode:
            case Mode.ROUND if self._wanted() <= 0:
                await self._send_rest(stream)
            case Mode.STREAM if self._clock() - self._sent_at >= COALESCE_SECONDS:
                await self._send_rest(stream)

    async def _send_rest(self, stream: ClientStream) -> None:
        """Send what was not sent yet; in ROUND with the word that no more will come, once per round."""
        if self._grant.mode is Mode.LOCAL:
            return
        branch = self._branch
        last = self._grant.mode is Mode.ROUND and self._answered != len(branch.text)
        position, guesses = branch.unsent()
        if not guesses and not last:
            return
        q = None if self._opening.sampling.match_rule else tuple(guess.q for guess in guesses if guess.q is not None)
        branch.sent = len(branch.ahead)
        if last:
            self._answered = len(branch.text)
        self._sent_at = self._clock()
        await stream.send(
            Draft(
                position=position,
                tokens=tuple(guess.token for guess in guesses),
                confirmed=len(branch.text),
                last=last,
                q=q or None,
                draft_seconds=self._take_spent(),
            )
        )

    def _take_spent(self) -> float:
        spent, self._spent = self._spent, 0.0
        return spent
