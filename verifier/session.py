"""One generation on the verifier: the committed text, the drafted tokens that wait behind it, and what its owner is told.

    tokens:   prompt ......... output ........ |
    pending:                                   | drafted, to be verified
              0          prompt_length         n = len(tokens)

A Draft claims "the tokens from p on are these". The part before n is compared with what is committed and dropped; what
contradicts it is stale, and so is what goes on from there, until a draft begins where its drafter knows the text to be
confirmed; the rest waits. What was said when less was known than in an earlier draft comes late, and says nothing new. So a
repeated, late or overlapping draft is harmless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from specfleet.core.errors import InvalidRequest, PositionGap
from specfleet.core.mailbox import Mailbox
from specfleet.core.protocol import Draft, Finished, Open, Verdict
from specfleet.core.records import made
from specfleet.core.sequences import agreeing
from specfleet.core.step import Alternative, DraftDistribution, StepResult
from specfleet.core.types import BEST_EFFORT, LOCAL, FinishReason, Grant, Mode, SamplingParams, ServiceClass, Usage

MAX_BRANCHES = 16
"""Most branches kept beside what waits for one session."""
MAX_PENDING = 64
"""Most drafted tokens kept waiting for one session; fewer near its end, where the last token is the target's own."""


class Offered(NamedTuple):
    """What became of a Draft: tokens now waiting that were not before, and tokens dropped as stale since the last one, those
    that waited when the text went another way included."""

    added: int
    stale: int


class Session:
    """State of one generation. Knows neither engine nor scheduler nor transport; the batch loop moves tokens between them."""

    __slots__ = (
        "_alternatives",
        "_branches",
        "_broken_at",
        "_complete",
        "_contradicted",
        "_cut_off",
        "_ends",
        "_heard",
        "_last",
        "_left",
        "_matches",
        "_pending",
        "_pending_chance",
        "_pending_q",
        "_stale",
        "_taken_at",
        "_trimmed",
        "cached_tokens",
        "can_draft",
        "computed",
        "draft_seconds",
        "finished",
        "first_at",
        "identity",
        "last_at",
        "mode",
        "number",
        "opened",
        "opened_at",
        "outbox",
        "prompt_length",
        "request_id",
        "resumed_length",
        "round_trip",
        "sampling",
        "sending_since",
        "service",
        "tokens",
    )

    def __init__(
        self,
        number: int,
        opening: Open,
        eos_token_ids: Sequence[int],
        limit: int,
        identity: str = "",
        service: ServiceClass = BEST_EFFORT,
    ) -> None:
        """`limit`: most tokens the session may ever hold (context and pool)."""
        self.number = number
        self.request_id = opening.request_id
        self.identity = identity
        self.service = service
        self.opened_at = self.first_at = self.last_at = 0.0
        """When it was submitted, and when its first and its newest token came."""
        self.sampling: SamplingParams = opening.sampling
        self._matches = opening.sampling.match_rule
        self.can_draft = opening.can_draft
        self.draft_seconds = opening.draft_seconds_per_token
        self.round_trip = opening.round_trip_seconds
        self.tokens: list[int] = [*opening.prompt, *opening.output]
        self.prompt_length = len(opening.prompt)
        self.cached_tokens = 0
        self.computed = 0
        """Tokens the engine holds."""
        self.mode = Mode.LOCAL
        """Mode of the grant in force."""
        self.opened: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        self.outbox: Mailbox[Verdict | Finished] = Mailbox()
        """What its owner is told next, or what ends it."""
        self.sending_since = 0.0
        """When the message that its stream has yet to take was begun; 0 while there is none."""
        self.finished: FinishReason | None = None
        self.resumed_length = len(opening.output)
        """Tokens of output that it came with."""
        self._pending: list[int] = []
        self._pending_q: list[DraftDistribution] = []
        self._pending_chance: list[float] = []
        """Of each, given that those before it are accepted; 1 where its drafter said nothing."""
        self._alternatives: dict[int, tuple[int, ...]] = {}
        """Other tokens for places of what waits, by position."""
        self._branches: list[Draft] = []
        """Kept beside what waits, until the text decides."""
        self._broken_at = 0
        """Position at which the text contradicted what waited, where `_contradicted`."""
        self._taken_at = 0
        """Length of the text that shows that the newest of them was right: who knew less went on from another one."""
        self._left = 0
        """Tokens that waited when a step began, and were left out of it."""
        self._stale = 0
        """Dropped by verdicts, and not yet told of."""
        self._cut_off = 0
        """Of what waits behind the text's end, guesses that were verified with the end itself."""
        self._complete = False
        self._trimmed = False
        self._contradicted = False
        """The branch that the last draft belonged to is: what continues it is stale until a draft begins anew."""
        self._heard = 0
        """Most of the text that a draft has known to be confirmed."""
        self._last = min(self.prompt_length + self.sampling.max_tokens, limit)
        ends = set(self.sampling.stop_token_ids)
        self._ends = ends if self.sampling.ignore_eos else ends | set(eos_token_ids)
        if self.resumed_length:
            self._check_finished()

    @property
    def pending(self) -> int:
        """Drafted tokens that wait to be verified."""
        return len(self._pending)

    @property
    def alternatives(self) -> int:
        """Alternatives that wait beside the drafted tokens."""
        return sum(map(len, self._alternatives.values())) if self._alternatives else 0

    @property
    def chances(self) -> tuple[float, ...]:
        """Of each waiting token, that it is right where those before it are. They end with the first one of which the drafter
        has said nothing."""
        return tuple(self._pending_chance) if self._pending_chance else ()

    @property
    def complete(self) -> bool:
        """The drafter said that no more will come before the next verdict."""
        return self._complete

    @property
    def output_length(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def met(self) -> bool:
        """Whether its class's targets were met, as seen from here."""
        tokens = self.output_length - self.resumed_length
        pace = (self.last_at - self.first_at) / (tokens - 1) if tokens > 1 else 0.0
        return self.service.met(self.first_at - self.opened_at, pace)

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt_length, self.output_length, self.cached_tokens)

    def offer(self, draft: Draft) -> Offered:
        """Take in a draft.

        Raises:
            PositionGap: it begins beyond every token that is known, and no message can be under way that fills the gap.
            InvalidRequest: rejection sampling without the drafted tokens' distributions, or with alternatives.
        """
        if draft.alternatives and not self._matches:
            raise InvalidRequest.field("alternatives", "must be empty where sampling has no seed")
        if draft.beside and not self._matches:
            raise InvalidRequest.field("beside", "must not be set where sampling has no seed")
        if draft.q is None and draft.tokens and not self._matches:
            raise InvalidRequest.field("distributions", "is empty, must have one per token where sampling has no seed")
        dropped, self._stale = self._stale, 0
        if draft.confirmed < self._heard:
            return Offered(0, dropped + _guesses(draft))
        self._heard = draft.confirmed
        before = len(self._pending)
        stale = dropped + (self._keep(draft) if draft.beside else self._merge(draft))
        pending = len(self._pending)
        # Said of a round that is over meanwhile, "no more will come" holds only if something of it is still of use. Once
        # said it holds until the next verdict: a repeated message takes nothing back.
        if draft.last and not draft.beside and (pending or draft.confirmed >= len(self.tokens)):
            self._complete = True
        return made(Offered, (pending - before if pending > before else 0, stale))

    def abandon(self) -> int:
        """Nothing of it will be verified any more; returns how many guesses waited, and how many were dropped as stale and
        not told of yet."""
        beside = sum(map(len, (draft.tokens for draft in self._branches)))
        self._branches.clear()
        lost = max(0, self._stale + self.pending + self.alternatives + beside - self._cut_off)
        self._stale = self._left = self._cut_off = 0
        self._pending.clear()
        self._pending_q.clear()
        self._pending_chance.clear()
        self._alternatives.clear()
        return lost

    def take_draft(self, count: int) -> tuple[list[int], list[DraftDistribution] | None]:
        """The first `count` waiting tokens, for a step. They stay until `commit` says what became of them."""
        q = None if self._matches else self._pending_q[:count]
        left = len(self._pending) - count
        self._left = left if left > 0 else 0
        return self._pending[:count], q

    def take_alternatives(self, count: int, most: int) -> list[Alternative]:
        """Up to `most` alternatives for places of the first `count` waiting tokens, the earliest first."""
        known, found = len(self.tokens), []
        for position in sorted(self._alternatives):
            if position < known + count:
                found += [Alternative(position - known, token) for token in self._alternatives[position]]
        return found[:most]

    def commit(self, result: StepResult, drafted: int, alternatives: int = 0) -> Verdict:
        """Take in what a step of `drafted` verified tokens and so many `alternatives` committed; returns the verdict (its
        grant is yet to be set).

        Ends the session at a stop id, at max_tokens or where its room ends; tokens behind that are cut off.
        """
        position = len(self.tokens)
        committed = self._until_end(result.tokens)
        accepted = min(result.accepted, len(committed))
        stale = self._advance(committed)
        stale -= min(stale, drafted - accepted)  # refused, which is no news
        trimmed = min(self._left, stale)
        if self._alternatives:
            known = len(self.tokens)
            dropped = self._keep_alternatives(known, known + self.pending)
        else:
            dropped = 0
        self._stale += stale + max(0, dropped - alternatives)
        if self._pending and self.finished is not None:
            self._cut_off = max(0, drafted - len(committed)) + max(0, alternatives - dropped)
        self._left = 0
        self.computed = position + len(committed) - 1
        self._complete = False
        if self._branches:
            self._stale += self._decide()
        logprobs = None if result.logprobs is None else result.logprobs[: len(committed)]
        likeliest = None if result.top_logprobs is None else result.top_logprobs[: len(committed)]
        beside = result.alternative and len(committed) > accepted
        mode = self.mode
        undecided = LOCAL  # the grant
        told = (
            position,
            committed,
            drafted,
            accepted,
            undecided,
            mode,
            logprobs,
            trimmed,
            alternatives,
            beside,
            likeliest,
        )
        return made(Verdict, told)

    def _until_end(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        room = max(1, self._last - len(self.tokens))
        taken = tokens[:room]
        if not self._ends.isdisjoint(taken):
            self.finished = FinishReason.STOP
            return taken[: next(n for n, token in enumerate(taken, 1) if token in self._ends)]
        if len(taken) == room:
            self.finished = FinishReason.LENGTH
        return taken

    def _check_finished(self) -> None:
        """A resumed session may have nothing left to do."""
        if self.tokens[-1] in self._ends:
            self.finished = FinishReason.STOP
        elif len(self.tokens) >= self._last:
            self.finished = FinishReason.LENGTH

    def _advance(self, tokens: Sequence[int]) -> int:
        """More committed tokens; what waits goes on if it begins with them, else it contradicts the text. Returns how many
        of those that waited are stale then."""
        self.tokens += tokens
        pending = self._pending
        if not pending:
            return 0
        right = agreeing(pending, tokens)
        contradicted = right < min(len(pending), len(tokens))
        gone = len(pending) if contradicted else right
        del pending[:gone]
        del self._pending_q[:gone]
        del self._pending_chance[:gone]
        if contradicted:
            self._contradicted, self._broken_at = True, len(self.tokens) - len(tokens) + right
            self._trimmed = False
        return gone - right

    def _keep_alternatives(self, start: int, stop: int) -> int:
        """Forget those for places outside [start, stop); returns how many."""
        if not self._alternatives:
            return 0
        before = self.alternatives
        self._alternatives = {at: tokens for at, tokens in self._alternatives.items() if start <= at < stop}
        return before - self.alternatives

    def _keep(self, draft: Draft) -> int:
        """A branch beside what waits: kept until the text has decided. Returns how many of its tokens are stale."""
        if draft.confirmed < self._taken_at:  # beside a branch that was left
            return len(draft.tokens)
        if self._contradicted or draft.position < len(self.tokens):
            return self._take(draft)
        if not draft.tokens or len(self._branches) == MAX_BRANCHES:
            return len(draft.tokens)
        self._branches.append(draft)
        return 0

    def _decide(self) -> int:
        """Take the branch that the text has turned out to go along, if there is one; returns how many tokens of others are
        stale."""
        stale, kept, left = 0, [], self._contradicted
        for draft in self._branches:
            if left or draft.position < len(self.tokens):
                stale += self._take(draft)
            else:
                kept.append(draft)
        self._branches = kept
        return stale

    def _take(self, draft: Draft) -> int:
        """A branch about which the text has decided becomes what waits, if it is right: the text left the other one just where
        it begins, and goes along it. Returns how many of its tokens are stale."""
        position, known = draft.position, len(self.tokens)
        said = draft.tokens[: known - position] if position <= known else ()
        right = agreeing(self.tokens[position:], said)
        if not self._contradicted or position != self._broken_at or not right:
            return len(draft.tokens)
        self._taken_at = position + 1
        if right < len(said):  # it came late, and the text has left it, too
            self._broken_at += right
            return len(draft.tokens)
        self._contradicted = False
        stale = self._append(draft, known)
        self._complete = self._complete or (draft.last and bool(self._pending))
        return stale

    def _merge(self, draft: Draft) -> int:
        """Merge a draft into what waits; returns how many of its tokens were stale."""
        known, start, pending = len(self.tokens), draft.position, len(self._pending)
        if start <= draft.confirmed:
            # A drafter that was contradicted begins again behind the text that it has seen confirmed. Until it does, what
            # it sends goes on from what was wrong, however much of the text it may have seen meanwhile.
            self._contradicted = False
        elif self._contradicted or draft.confirmed < self._taken_at:
            return _guesses(draft)
        if start > known + pending:
            if draft.confirmed >= known and not self._trimmed:
                raise PositionGap(
                    f"draft begins at position {start}, but only {known + pending} positions are known; "
                    f"send the tokens from {known} on"
                )
            return _guesses(draft)
        if start < known:
            said = draft.tokens[: known - start]
            right = agreeing(self.tokens[start:], said)
            if right < len(said):
                self._contradicted, self._broken_at = True, start + right
                return _guesses(draft)
        return self._append(draft, known)

    def _append(self, draft: Draft, known: int) -> int:
        """Put the part of a draft that lies at or behind position `known` into the waiting tokens; the newest word wins.
        Returns how many tokens it took the place of, or had none itself."""
        pending, at = self._pending, draft.position - known
        skip, at = (0, at) if at > 0 else (-at, 0)
        if at < len(pending):
            skip, at = skip + (same := agreeing(pending[at:], draft.tokens[skip:])), at + same
        fresh = draft.tokens[skip:]
        if not fresh:
            return 0
        # A step that went beyond the room would be refused as a whole, everybody else's part of it included.
        room = max(0, min(MAX_PENDING, self._last - 1 - known) - at)
        beyond = len(fresh) - room
        self._trimmed = beyond > 0
        lost = max(0, len(pending) - at) + max(0, beyond)
        if self._alternatives:
            lost += self._keep_alternatives(known, known + at)
        for one in draft.alternatives:
            place = one.offset - skip
            if 0 <= place < room:
                there = known + at + place
                self._alternatives[there] = (*self._alternatives.get(there, ()), one.token)
            lost += place >= room
        pending[at:] = fresh[:room]
        del self._pending_chance[at:]
        if len(self._pending_chance) == at:
            self._pending_chance += _conditional(draft)[skip : skip + room]
        if draft.q is not None:
            self._pending_q[at:] = draft.q[skip:][:room]
        return lost


def _guesses(draft: Draft) -> int:
    return len(draft.tokens) + len(draft.alternatives)


def _conditional(draft: Draft) -> list[float]:
    """The chance of each drafted token, given that those before it are accepted: ratios of neighbouring survivals. Of none
    where the drafter says nothing."""
    found, before = [], 1.0
    for survival in draft.survival or ():
        found.append(survival / before if before else 0.0)
        before = survival
    return found
