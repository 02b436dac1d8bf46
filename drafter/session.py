"""A generation on one verifier: a Verify stream, and guesses that keep ahead of it. When the stream breaks, the session is
over, and another one goes on (drafter.resume).

Two activities share a `Branch`: receiving verdicts (`run`) and drafting (`_draft`). Neither waits for the other; what a
verdict contradicts is dropped when its guesses land. The mode and length granted last decide what drafting does:

    LOCAL    nothing, the verifier decodes; now and then score its text, so that it knows when drafting would pay again
    ROUND    draft the granted number, or fewer where the next would not pay, send it as one message; then, while the verdict
             is on its way, draft on from its own guesses and send them as they come: where it agrees, the next round has begun
             before it is here. And draft for what it may say instead, each beside the others, to the same end
    STREAM   draft on from its own guesses, send as they come, up to a bound beyond the confirmed text
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from itertools import accumulate
from operator import mul

from drafter.alternatives import worth_sending
from drafter.branch import Branch
from drafter.early_stop import EarlyStop, Watch, when_of_use
from drafter.ledger import Ledger
from drafter.observer import Observer, Silent
from drafter.pace import Pace
from drafter.speculators import Drafting, Guess, Speculator, Stoppable
from specfleet.core.clock import Clock
from specfleet.core.errors import InternalError, SpecfleetError, StreamInterrupted
from specfleet.core.mailbox import Signal
from specfleet.core.protocol import (
    MAX_DRAFT_TOKENS,
    ClientStream,
    Draft,
    Finished,
    Open,
    Opened,
    Shadow,
    Verdict,
    VerifierConnection,
    VerifyResponse,
)
from specfleet.core.records import made
from specfleet.core.step import Alternative, StepResult, Stop
from specfleet.core.trace import Phase, Tracer
from specfleet.core.types import LOCAL, Grant, Mode

log = logging.getLogger(__name__)

ALONE, ROUND, STREAM = Mode.LOCAL, Mode.ROUND, Mode.STREAM
"""Asked of every guess, and looked up through an enum's metaclass they take ten times as long."""
FIRST_SHADOW, SHADOW_EVERY, SHADOW_TOKENS = 80, 128, 16
"""In LOCAL, after so many tokens, and every so many, the last so many are scored: one forward of a draft model each. Short
texts are left alone: the draft model would have to read their prompt for it."""
MOST_AHEAD = 48
"""Tokens beyond the confirmed text at most, however far away the verifier is."""
COALESCE_SECONDS = 0.004
"""Guesses ahead that come faster than this share a message."""
SPARE = 0.2
"""Share of a step by which its beginning may be off from where a drafter takes it to be: then its guesses go one by one."""
LEAST_AHEAD, LEAST_AHEAD_NEAR = 0.03, 0.3
"""Least chance that a branch is right when it is of use, for guesses further ahead: far from the verifier they cost little but
a late start where they were wrong, by half a guess's time. The second is for a verifier nearer than"""
BETWEEN_BRANCHES = 0.125
"""Of the guesses that a branch in STREAM must have right before it overtakes the verifier, so many tokens of text lie between
the beginnings of two: most end with their first guess, and a run long enough to overtake is hardly shorter for being begun
so much later."""
FAR_SECONDS = 0.005
"""To the verifier and back, from which on drafts are made for what a verdict may say instead,"""
LEAST_BESIDE = 0.03
"""where the chance that it does is larger than that."""
NEAR_SECONDS = 0.002
"""to there and back: it may well share the drafter's processor, and what it agrees with sooner saves it little."""


class DraftingSession:
    """Transport, speculator and clock are injected, so that the same session runs in production and in virtual time."""

    __slots__ = (
        "_ahead",
        "_answered",
        "_answered_at",
        "_began_at",
        "_begun",
        "_branch",
        "_changed",
        "_clock",
        "_connection",
        "_drafted",
        "_early",
        "_grant",
        "_granted_at",
        "_lane",
        "_last",
        "_ledger",
        "_length",
        "_matches",
        "_max_draft",
        "_mute",
        "_observer",
        "_opening",
        "_pace",
        "_sent_at",
        "_shadow_at",
        "_speculator",
        "_spent",
        "_stoppable",
        "_stopped",
        "_tracer",
        "_trees",
        "_verdict_at",
    )

    def __init__(
        self,
        opening: Open,
        connection: VerifierConnection,
        speculator: Speculator,
        clock: Clock,
        observer: Observer | None = None,
        pace: Pace | None = None,
        ahead: bool = False,
        early: EarlyStop | None = None,
        tracer: Tracer | None = None,
        trees: bool = False,
        max_draft: int = MAX_DRAFT_TOKENS,
    ) -> None:
        """`ahead`: draft on while the verdict of a ROUND is on its way, as STREAM always does. `early`: what is known of
        guesses; None to draft whatever was granted. `trees`: send second guesses where they pay; what pays is known only by
        `early`. `max_draft`: longest draft, whatever was granted."""
        self._max_draft = max_draft
        self._trees = trees and early is not None and opening.sampling.match_rule
        self._pace = pace or Pace()
        self._ahead = ahead
        self._early = early
        self._tracer = tracer
        self._lane = tracer.lane("generation") if tracer is not None else ""
        self._opening = opening
        self._matches = opening.sampling.match_rule
        self._connection = connection
        self._speculator = speculator
        self._clock = clock
        self._observer = observer or Silent()
        self._ledger = Ledger(speculator.name, opening.sampling, early, self._observer)
        self._branch = Branch([*opening.prompt, *opening.output])
        self._shadow_at = self._branch.known + FIRST_SHADOW
        """Length of the text from which on to score it, in LOCAL."""
        self._last = len(opening.prompt) + opening.sampling.max_tokens
        self._grant: Grant = LOCAL
        self._length = 0
        """Of a draft. The verifier is told where it ends before its grant (`Draft.last`)."""
        self._granted_at = 0.0
        self._verdict_at = 0.0
        """When the last verdict came for which the verifier had not waited."""
        self._answered = -1
        """In ROUND: length of the confirmed text for which the draft is complete."""
        self._answered_at = 0.0
        self._drafted = 0
        """Guesses in that draft."""
        self._stopped = False
        """That draft ended before the grant, since more would not have paid."""
        self._sent_at = 0.0
        self._spent = 0.0
        """Seconds of drafting since the last message, or since the branch began."""
        self._begun = False
        """The speculator has computed the prompt."""
        self._began_at = 0
        """Length of the confirmed text when the newest branch began."""
        self._stoppable: Stoppable | None = None
        """The speculator's, where its drafts may end early. Asked once: whether something implements a protocol takes longer
        than a whole verdict."""
        self._mute = False
        """Drafting failed; every round is answered with an empty draft from now on."""
        self._changed = Signal()

    async def run(self) -> AsyncGenerator[Opened | Verdict | Finished]:
        """The verifier's messages, in order, while drafting goes on beside. Closing the iterator ends the session."""
        stream = await self._connection.verify()
        drafting = None
        try:
            asked = self._clock()
            await stream.send(self._opening)
            opened = await self._first(stream)
            away = max(0.0, self._clock() - asked - opened.waited_seconds)
            self._pace.round_trip.observe(away, self._clock())
            self._observer.network(away)
            self._take_grant(opened.grant, self._clock())
            drafting = asyncio.create_task(self._draft(stream))
            yield opened
            finished = False
            while not finished:
                if drafting.done():
                    drafting.result()  # a drafting side that failed ends the session: it never ends by itself otherwise
                message = self._heard(await stream.receive())
                finished = isinstance(message, Finished)
                yield message
        finally:
            if drafting is not None:
                drafting.cancel()
                await asyncio.gather(drafting, return_exceptions=True)
            stream.cancel()
            self._ledger.finish(self._branch.finish())

    async def _first(self, stream: ClientStream) -> Opened:
        opened = await stream.receive()
        if not isinstance(opened, Opened):
            raise InternalError(
                f"the verifier began with {type(opened).__name__} instead of Opened; versions may differ"
            )
        return opened

    def _heard(self, message: VerifyResponse | None) -> Verdict | Finished:
        """A message, taken in."""
        match message:
            case Verdict():
                self._take(message)
                return message
            case Finished():
                return message
            case None:
                raise StreamInterrupted("the verifier ended the stream before the generation was finished")
            case Opened():
                raise InternalError("the verifier opened the session twice")

    def _take(self, verdict: Verdict) -> None:
        """A verdict moves the text on and says how to go on from there."""
        behind = self._branch.known - verdict.position
        if behind < 0:
            raise InternalError(f"verdict at {verdict.position}, but the text ends at {self._branch.known}")
        settled = self._branch.confirm(verdict.tokens[behind:], verdict.accepted - behind, verdict.drafted - behind)
        self._ledger.settle(settled, verdict)
        if settled.taken:
            self._answered, self._answered_at = self._branch.known, self._clock()
            self._drafted = len(self._branch.ahead)
        since, now = self._granted_at, self._clock()
        if verdict.drafted and self._sent_at:
            self._observer.round_trip(now - self._sent_at)
        if verdict.drafted and self._stopped:
            self._observer.early_stop(verdict.accepted < verdict.drafted)
        self._stopped = False
        self._take_grant(verdict.grant, now)
        if self._tracer is not None and verdict.mode is ROUND and verdict.drafted and self._answered_at >= since:
            self._tracer.round(Phase.DRAFTING, since, self._answered_at, self._lane)
            self._tracer.round(Phase.WAITING, self._answered_at, now, self._lane)
            self._tracer.rounds += 1
        if verdict.mode is ROUND:
            self._pace.round_seconds.observe(now - since)
            self._pace.round_tokens.observe(len(verdict.tokens))
        else:
            if self._verdict_at:
                self._pace.step_seconds.observe(now - self._verdict_at)
            self._verdict_at = now

    def _take_grant(self, grant: Grant, now: float) -> None:
        if self._granted_at:
            self._observer.mode_time(self._grant.mode, now - self._granted_at)
        self._grant, self._granted_at = grant, now
        self._length = min(grant.length, self._max_draft)
        self._changed.set()

    # --- the drafting side -----------------------------------------------------------------------------------------

    async def _draft(self, stream: ClientStream) -> None:
        if not self._opening.can_draft:
            await asyncio.Event().wait()
        drafting = self._speculator.start(self._opening.sampling)
        self._stoppable = drafting if isinstance(drafting, Stoppable) else None
        try:
            while True:
                self._changed.clear()
                wanted = self._wanted()
                place = self._place_beside()
                if place is not None:
                    await self._beside(drafting, stream, place)
                elif wanted > 0 and await self._extend(drafting, wanted):
                    message = self._gathered()
                    if message is not None:
                        await stream.send(message)
                elif self._shadows():
                    await self._shadow(drafting, stream)
                else:
                    message = self._rest()
                    if message is not None:
                        await stream.send(message)
                    await self._changed.wait()
        finally:
            drafting.close()

    def _place_beside(self) -> int | None:
        """Of the guesses of this round's draft, all of them sent, the one whose runner-up is likeliest to be what the verdict
        will say instead, if that is worth a branch of its own: while the verdict is on its way."""
        if not self._ahead or self._early is None or self._mute or not self._matches or self._grant.mode is not ROUND:
            return None
        branch = self._branch
        if self._answered != branch.known or self._pace.round_trip.value < FAR_SECONDS:
            return None
        done, survival, best, found = {at - branch.known for at, _ in branch.beside}, 1.0, LEAST_BESIDE, None
        for place, guess in enumerate(branch.ahead[: self._drafted]):
            sure = guess.confidence
            if sure is None:
                break
            share = guess.runner_up_chance or sure.runner_up_share
            chance = survival * (1.0 - guess.chance) * share
            if chance > best and place not in done and sure.runner_up is not None:
                best, found = chance, place
            survival *= guess.chance
        # The branch that goes on from all of them comes first where it is likelier.
        if found is not None and best < branch.survival and self._wanted() > 0:
            return None
        return found

    async def _beside(self, drafting: Drafting, stream: ClientStream, place: int) -> None:
        """Draft what follows the runner-up at `place`, and send it: if that is what the verdict says, the next round has begun
        before it is known here."""
        branch, known, version = self._branch, self._branch.known, self._branch.version
        position, guess = known + place, branch.ahead[place]
        assert guess.confidence is not None and guess.confidence.runner_up is not None
        text = [*branch.belief[:position], guess.confidence.runner_up]
        useful = min(self._length, self._last - 1 - len(text))
        start = self._clock()
        try:
            guesses = await drafting.draft(text, useful) if useful > 0 else []
        except SpecfleetError as error:
            log.warning("drafting failed", extra={"request_id": self._opening.request_id, "error": error.message})
            self._mute = True
            return
        seconds = self._clock() - start
        if guesses:
            self._pace.draft_seconds.observe(seconds / len(guesses), start + seconds)
        first = Guess(guess.confidence.runner_up)
        noted = self._ledger.drafted([first, *guesses], place, seconds, True)
        if known != branch.known or version != branch.version or self._grant.mode is not ROUND:
            self._ledger.discard("overtaken", noted)
            return
        branch.beside.append((position, noted))
        tokens = tuple(one.token for one in noted)
        await stream.send(
            Draft(position=position, tokens=tokens, confirmed=known, last=True, draft_seconds=seconds, beside=True)
        )

    def _shadows(self) -> bool:
        """Whether it is time to score what the verifier has written alone."""
        if self._grant.mode is not ALONE or not self._matches or self._mute:
            return False
        return self._branch.known >= self._shadow_at

    async def _shadow(self, drafting: Drafting, stream: ClientStream) -> None:
        """Score the newest text, and report how much of it would have been guessed. Without a seed there is nothing to
        compare: which token a model would have chosen is chance."""
        text = self._branch.text
        self._shadow_at = len(text) + SHADOW_EVERY
        try:
            matches = await drafting.score(text, SHADOW_TOKENS)
        except SpecfleetError as error:
            log.warning("scoring failed", extra={"request_id": self._opening.request_id, "error": error.message})
            return
        if matches is None:
            return
        pace = self._pace.told_draft_seconds(self._clock())
        await stream.send(
            Shadow(position=len(text), tested=SHADOW_TOKENS, accepted=matches, draft_seconds_per_token=pace)
        )

    @property
    def _unanswered(self) -> bool:
        """The verifier waits for a draft."""
        return self._grant.mode is ROUND and self._answered != self._branch.known

    def _wanted(self) -> int:
        """How many more tokens to guess now."""
        branch, grant = self._branch, self._grant
        mode, ahead = grant.mode, len(branch.ahead)
        unanswered = mode is ROUND and self._answered != branch.known
        if not unanswered and (mode is ALONE or (mode is ROUND and not self._ahead)):
            return 0
        # The verdict adds a token of the target's own, so the last one is never worth a guess.
        useful = 0 if self._mute else self._last - 1 - len(branch.belief)
        if unanswered:
            return 0 if self._enough() else min(self._length - ahead, useful)
        if self._hopeless(branch.survival, ahead) or (mode is STREAM and not ahead and self._too_soon):
            return 0
        return min(self._bound(grant) - ahead, self._speculator.stride, useful)

    @property
    def _too_soon(self) -> bool:
        """For another branch."""
        return self._branch.known - self._began_at < BETWEEN_BRANCHES * self._pace.lag

    def _enough(self) -> bool:
        """Whether the draft of a ROUND is too doubtful for one more guess to pay. The first one always does."""
        return self._early is not None and self._branch.survival < self._least_survival

    @property
    def _least_survival(self) -> float:
        return self._pace.least_survival(self._grant.token_cost)

    def _hopeless(self, survival: float, count: int) -> bool:
        """Whether a branch of `count` guesses ahead, right with chance `survival`, is too doubtful for one more. In ROUND
        those of one draft are made together: only a whole one lets the verifier begin its round at once."""
        if self._grant.mode is ROUND:
            behind = count - self._drafted - 1  # the round's draft, and a guess at the verdict's own token
            if behind > 0 and behind % (self._length + 1):
                return False
        near = 0.0 < self._pace.round_trip.value < NEAR_SECONDS
        return self._when_of_use(survival, count) < (LEAST_AHEAD_NEAR if near else LEAST_AHEAD)

    def _when_of_use(self, survival: float, count: int) -> float:
        """The chance that such a branch will be right when it can be of use: in STREAM that is ahead of the verifier."""
        if not count or self._grant.mode is not STREAM:
            return survival
        return when_of_use(survival, count, self._pace.lag, self._ledger.record)

    def _bound(self, grant: Grant) -> int:
        """How far beyond the confirmed text to guess: what one step may verify and the token it adds, and what is guessed
        while messages are on their way and the step is run. Without the latter whoever is far away would wait."""
        lead = self._pace.lead if grant.mode is STREAM else self._pace.round_lead
        return min(MOST_AHEAD, self._length + 1 + (lead or self._length))

    async def _extend(self, drafting: Drafting, wanted: int) -> bool:
        """Guess `wanted` more tokens, or fewer; False if there is nothing to go by. The first one is made alone: it takes the
        time of the whole prompt, which says nothing of how fast guesses are."""
        begun, self._begun = self._begun, True
        wanted = wanted if begun else 1
        branch, ahead, stoppable = self._branch, not self._unanswered, self._stoppable
        base, place, version, start = len(branch.belief), len(branch.ahead), branch.version, self._clock()
        if not place:
            self._began_at, self._spent = branch.known, 0.0
        watch = None
        try:
            if stoppable is not None and wanted > 1:
                watch = self._watch(ahead)
                guesses = await stoppable.draft_until(branch.belief, wanted, self._stop(watch, ahead))
            else:
                guesses = await drafting.draft(branch.belief, wanted)
        except SpecfleetError as error:
            # Guessing is only ever a help: without it the verifier writes the same text.
            log.warning("drafting failed", extra={"request_id": self._opening.request_id, "error": error.message})
            self._mute = True
            return False
        seconds = self._clock() - start
        self._spent += seconds
        count = len(guesses)
        if count and begun:
            self._pace.draft_seconds.observe(seconds / count, start + seconds)
        guesses = self._ledger.drafted(guesses, place, seconds, ahead, watch)
        kept = branch.land(base, version, guesses)
        if kept < count:
            self._ledger.discard("overtaken", guesses[: count - kept])
        return count > 0

    def _watch(self, ahead: bool) -> Watch | None:
        """What looks at guesses as they are made, and in ROUND ends them."""
        if self._early is None:
            return None
        branch, least = self._branch, 0.0 if ahead else self._least_survival
        return self._ledger.watch(len(branch.ahead), branch.survival, least)

    def _stop(self, watch: Watch | None, ahead: bool) -> Stop:
        """True once no more guesses are wanted: they became too doubtful, or the text says otherwise meanwhile."""
        branch = self._branch
        base, version = len(branch.belief), branch.version
        made: list[int] = []

        def stop(guess: StepResult) -> bool:
            made.append(guess.tokens[-1])
            if branch.contradicts(base, version, made):
                return True
            return watch is not None and (watch(guess) or (ahead and self._hopeless(watch.survival, watch.place)))

        return stop

    def _gathered(self) -> Draft | None:
        """What to send after guessing: the draft of a ROUND once it is full, what is ahead as it has gathered."""
        if self._unanswered:
            enough = self._wanted() <= 0
        else:
            now = self._clock()
            enough = now - self._sent_at >= COALESCE_SECONDS and not self._in_time(now)
        return self._rest() if enough else None

    def _in_time(self, now: float) -> bool:
        """Whether one more guess, sent with these, would certainly come before the step that could verify them: each message
        takes the verifier's time. In STREAM steps follow each other, the first of them when the newest verdict was sent."""
        pace = self._pace
        step = pace.step_seconds.value
        if self._grant.mode is not STREAM or not step or not self._verdict_at:
            return False
        passed, spare = (now - self._verdict_at + pace.round_trip.value) % step, SPARE * step
        return spare <= passed and passed + pace.draft_seconds.value + spare < step

    def _rest(self) -> Draft | None:
        """What was not sent yet, to be sent now; in ROUND with the word that no more will come, once per round, unless the
        verifier had all of the round before and has not waited. In STREAM nothing of a branch that will hardly be of use, nor
        before it reaches beyond what the verifier will have written by then: each message takes the verifier's time."""
        branch, grant = self._branch, self._grant
        mode, sent, ahead = grant.mode, branch.sent, len(branch.ahead)
        if mode is ALONE:
            return None
        unanswered = mode is ROUND and self._answered != branch.known
        if not unanswered and sent == ahead:
            return None
        if mode is STREAM:
            overtaken = not sent and ahead < self._pace.behind
            if overtaken or self._when_of_use(branch.survival, ahead) < LEAST_AHEAD:
                return None
        last = unanswered and (sent < grant.length or not grant.length)
        position, guesses = branch.unsent()
        if mode is ROUND:  # all that waits there when a round begins is its draft
            guesses = guesses[: max(0, self._max_draft - sent)]
        count, now = len(guesses), self._clock()
        if unanswered:
            self._answered, self._answered_at = branch.known, now
            self._drafted = min(sent + count, grant.length)
            self._stopped = ahead < self._length and self._enough()
        if not count and not last:
            return None
        alternatives = self._alternatives(count) if self._trees else ()
        q = None if self._matches else tuple(guess.q for guess in guesses if guess.q is not None)
        branch.sent += count
        self._sent_at = now
        spent, self._spent = self._spent, 0.0
        tokens, survival = tuple(branch.belief[position : position + count]), self._survival(guesses)
        return made(Draft, (position, tokens, branch.known, last, q or None, spent, survival, alternatives, False))

    def _alternatives(self, count: int) -> tuple[Alternative, ...]:
        """Second guesses that go with the first `count` guesses that were not sent yet."""
        branch, grant = self._branch, self._grant
        if not grant.alternatives or not count:
            return ()
        ahead = branch.ahead[: branch.sent + count]
        places = worth_sending(ahead, branch.sent, grant.alternatives, grant.token_cost)
        branch.mark_alternatives(places)
        self._ledger.sent_alternatives(len(places))
        found = ((place - branch.sent, branch.ahead[place].confidence) for place in places)
        return tuple(Alternative(at, sure.runner_up) for at, sure in found if sure and sure.runner_up is not None)

    def _survival(self, guesses: Sequence[Guess]) -> tuple[float, ...] | None:
        """What `Draft.survival` says of these guesses; None where nothing is known."""
        if self._early is None or not guesses:
            return None
        return tuple(accumulate([guess.chance for guess in guesses], mul))
