"""The scheduler: sessions' records, `plan` and `commit`. The policies it is built from decide; it keeps the counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter

import numpy as np
from mypy_extensions import mypyc_attr

from scheduler import batching, speculation
from scheduler.admission import Refusal, Request, infeasible, over_quota
from scheduler.budget import StepBudget
from scheduler.estimators import Acceptance, AcceptancePool, Goodput, Smoothed
from scheduler.identities import Identities, Identity, Share, jain
from scheduler.ready import Ready, ReadyQueue
from scheduler.step_profile import UNPROFILED, StepProfile
from scheduler.step_time import StepShape, StepTimeModel
from scheduler.types import ESTIMATE_SHARE, ROUND, ItemOutcome, Outcome, Plan, PlanItem, SessionRecord
from scheduler.view import View
from specfleet.core.errors import InvalidRequest
from specfleet.core.step import PAGE_SIZE
from specfleet.core.types import BEST_EFFORT, LOCAL, Grant, Mode, ServiceClass

PATIENCE = 4.0
"""A round waits for its draft for so many times what drafting and the way usually take."""
PATIENCE_STEPS = 4.0
"""And so many steps longer, for a drafter that works for others, too."""
MAX_SHADOW = 64
"""Tokens that one shadow report may count for: it is the drafter's word only."""
STUCK = 0.125
"""Share of those that are ready which wait for a page, from which on a session gives its pages back for them."""
ALTERNATIVES = 4
"""Granted beside a draft, while a token of a step costs less than"""
DEAREST_ALTERNATIVE = 0.2
"""so many of text: a second guess that is right more often is rare."""
RATE_SECONDS = 2.0
"""Over which the tokens per second that a step's time is worth are averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    speculation: str = "fair-goodput"
    """Speculation policy, by name."""
    batching: str = "slo"
    """Batching policy, by name."""
    max_step_tokens: int = 512
    """Most tokens in one step."""
    page_size: int = PAGE_SIZE
    """Tokens in a KV page."""
    draft_wait_seconds: float = 1.0
    """In ROUND, how long to wait for a draft at most before the verifier decodes without it."""
    classes: tuple[ServiceClass, ...] = ()
    """Those that requests may name."""
    shares: Mapping[str, Share] = field(default_factory=dict)
    """By identity; who is not in it has weight 1 and no limits."""
    profile: StepProfile = UNPROFILED
    """What steps took when somebody measured them; refitted while serving."""
    seed: int = 0
    """For policies that draw."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Scheduler:
    """Call `open`, `drafted` and `close` as things happen, `plan` before a step and `commit` after it. Never waits."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self._records: dict[int, SessionRecord] = {}
        self._queue = ReadyQueue()
        self._view = View(StepTimeModel(config.profile), self._records)
        self._pool = AcceptancePool()
        self._identities = Identities(config.shares)
        self._rate = Goodput(0.0, RATE_SECONDS)
        """Tokens per second of all sessions together."""
        self._token_cost = 0.0
        self._classes = {"": BEST_EFFORT, **{one.name: one for one in config.classes}}
        self._speculation = speculation.build(config.speculation, self._view, np.random.default_rng(config.seed))
        self._batching = batching.build(config.batching, self._view)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[SessionRecord]:
        return iter(self._records.values())

    @property
    def step_time(self) -> StepTimeModel:
        return self._view.step_time

    @property
    def price(self) -> float:
        """Of a second of the verifier, in weighted tokens; 0 where the policy knows no price."""
        return float(getattr(self._speculation, "price", 0.0))

    @property
    def token_cost(self) -> float:
        """What one more token in a step costs all sessions together, in tokens of text: the time it takes, at the rate at
        which they get theirs. An idle verifier's tokens are cheap."""
        return self._token_cost

    @property
    def _alternatives(self) -> int:
        """Those that a session may have verified beside its draft."""
        return ALTERNATIVES if self._token_cost <= DEAREST_ALTERNATIVE else 0

    @property
    def fairness(self) -> float:
        """Jain's index over the goodput of identities with sessions, by weight."""
        return jain([one.goodput.value / one.share.weight for one in self._identities.active()])

    def service_class(self, name: str) -> ServiceClass:
        """Raises InvalidRequest where there is none of that name."""
        if name not in self._classes:
            known = ", ".join(sorted(filter(None, self._classes)))
            limit = f"must be one of {known}" if known else "but this verifier was started without --service-class"
            raise InvalidRequest.field("service_class", f"is {name!r}, {limit}; or leave it empty")
        return self._classes[name]

    def admit(self, request: Request, waiting: Sequence[Request], now: float) -> Refusal | None:
        """Whether to refuse another session, when those of `waiting` were let in but are not open yet. Changes nothing."""
        identity = self._identities.get(request.identity, now)
        return over_quota(identity, waiting, now) or infeasible(
            request, waiting, self._records.values(), self.step_time
        )

    def open(
        self,
        session: int,
        *,
        known: int,
        computed: int,
        can_draft: bool,
        now: float,
        identity: str = "",
        service: ServiceClass = BEST_EFFORT,
        draft_seconds: float = 0.0,
        round_trip: float = 0.0,
    ) -> Grant:
        """A session with `known` tokens, `computed` of them already cached. Returns its first grant.

        `draft_seconds` per token and `round_trip` seconds are what its drafter says of itself, 0 for not known.
        """
        record = SessionRecord(
            session,
            known,
            computed,
            can_draft,
            opened_at=now,
            ready_at=now,
            acceptance=Acceptance(self._pool),
            identity=self._identities.opened(identity, now),
            service=service,
            draft_seconds=Smoothed(ESTIMATE_SHARE, draft_seconds),
            round_trip=Smoothed(ESTIMATE_SHARE, round_trip),
        )
        if record.promised:
            record.schedule()
        if not self._records:
            self._rate.resume(now)  # what nobody asked for says nothing of what a token costs
        self._records[session] = record
        record.grant = self._issued(self._speculation.opened(record, now)) if can_draft else LOCAL
        record.told.append((known, now))
        self._place((record,), now)
        return record.grant

    def drafted(
        self,
        session: int,
        pending: int,
        complete: bool,
        now: float,
        *,
        tokens: int = 0,
        seconds: float = 0.0,
        alternatives: int = 0,
        confirmed: int = 0,
        chances: Sequence[float] = (),
    ) -> None:
        """`pending` drafted tokens now wait behind the session's text, with `alternatives` beside them; `complete` if no more
        will come. `chances`, where the drafter tells them, are that each is right where those before it are. The message that
        said so brought `tokens` tokens, drafted in `seconds` by one who knew `confirmed` tokens of the text."""
        record = self._records[session]
        waited = record.waits
        if tokens and record.drafts:  # a session's first draft has taken the time of its whole prompt
            record.draft_seconds.observe(seconds / tokens)
        heard = record.heard(confirmed)
        if waited and complete and record.told_at:
            record.round_trip.observe(now - record.told_at - seconds)
        elif heard is not None:
            # What later messages were drafted in may have begun before that.
            record.round_trip.at_most(now - heard - (0.0 if record.drafts else seconds))
        record.drafts = record.drafts or tokens > 0
        was_ready = not waited or now >= record.draft_deadline
        record.waiting(pending, alternatives, complete, chances, self._token_cost)
        if not was_ready:
            record.ready_at = now
        if waited or record.waits:
            self._queue.place(record, now)

    def shadowed(self, session: int, accepted: int, tested: int, draft_seconds: float = 0.0) -> None:
        """In LOCAL: of `tested` streamed tokens the drafter would have guessed `accepted`, in `draft_seconds` each."""
        record = self._records[session]
        if tested <= MAX_SHADOW:
            record.acceptance.reported(accepted, tested)
        record.draft_seconds.observe(draft_seconds)

    def ready_at(self, session: int) -> float:
        """Since when it waits for a step."""
        return self._records[session].ready_at

    def close(self, session: int) -> None:
        record = self._records.pop(session, None)
        if record is not None:
            self._queue.discard(session)
            self._identities.closed(record.identity)
            self._speculation.closed(record)

    def plan(self, now: float, free_pages: int) -> Plan:
        """The next step: never more than `max_step_tokens` tokens or `free_pages` pages, no session twice. While somebody is
        ready it is empty only for a moment, until `wake_at`, where the batching policy finds a draft worth waiting for.

        When nobody who is ready finds a page, or too many of those that decode do not, the session that came last gives its
        pages back and waits.
        """
        ready = self._queue.at(now)
        if not len(ready):
            return Plan(wake_at=self._queue.next_deadline())
        until = self._batching.pause(ready, self._queue.waiting, now)
        if until is not None:
            return Plan(wake_at=until)
        budget = StepBudget(self.config.max_step_tokens, free_pages, self.config.page_size)
        self._batching.fill(ready, budget, now)
        if budget.items and self._page_bound(ready, budget):
            relieved = self._preempt(list(ready))
            if relieved.preempt:
                return relieved
        if budget.items:
            if budget.drafts and self._alternatives and not ready.targets:
                self._add_alternatives(budget)
            seconds, plain = self.step_time.predict(budget.shape), self.step_time.predict(budget.plain)
            return Plan(tuple(budget.items), seconds=seconds, plain_seconds=plain, shape=budget.shape)
        return self._preempt(list(ready))

    def _page_bound(self, ready: Ready, budget: StepBudget) -> bool:
        """Whether so many wait for a page that steps are much smaller for it: a text is then computed anew in less time than
        the others lose, and what it gives back serves many of them."""
        if budget.free_pages > 0:
            return False
        taken, size = {item.session for item in budget.items}, self.config.page_size
        decodes = chain.from_iterable(own.values() for own in ready.decodes.values())
        stuck = sum(record.computed % size == 0 and record.session not in taken for record in decodes)
        return stuck > max(1, STUCK * len(ready))

    def _add_alternatives(self, budget: StepBudget) -> None:
        """Where drafts have left room, and nobody's deadline speaks against a longer step."""
        for place, item in enumerate(budget.items):
            if item.draft:
                record = self._records[item.session]
                if record.alternatives:
                    budget.add_alternatives(place, record)

    def commit(self, outcome: Outcome, now: float) -> dict[int, Grant]:
        """Learn from a step; returns the next grant of every session that got a verdict."""
        self.step_time.observe(outcome.shape or self._shape(outcome.items), outcome.seconds)
        self._view.step_seconds.observe(outcome.seconds)
        records, tokens, worth = self._learn(outcome, now)
        self._speculation.stepped(outcome, now, worth)
        self._rate.observe(sum(tokens.values()), now)
        self._token_cost = self.step_time.coefficients[1] * self._rate.value
        grants = self._hand_out(records, self._speculation.decided_all(records, outcome, now), now)
        for identity, count in tokens.items():
            identity.committed(count, now)
        return grants

    def _learn(self, outcome: Outcome, now: float) -> tuple[list[SessionRecord], dict[Identity, int], float | None]:
        """Count what the step did for each session. Returns those that got a verdict; the tokens of each identity; and what
        all tokens were worth, None for a step that prefilled."""
        known_records = self._records
        records: list[SessionRecord] = []
        tokens: dict[Identity, int] = {}
        identity: Identity | None = None
        count = 0
        worth, prefilled = 0.0, False
        for item in outcome.items:
            session, fed, drafted, accepted, committed, pending, alternatives, waiting, complete, chances = item
            if fed > 1 or not committed:
                prefilled = True
            record = known_records.get(session)
            if record is None:
                continue
            record.ready_at = now
            if not committed:
                record.computed += fed
                self._queue.place(record, now)
                continue
            worth += record.worth if committed == 1 else record.worth * committed
            if record.identity is not identity:  # those of one identity mostly come together
                if identity is not None:
                    tokens[identity] = tokens.get(identity, 0) + count
                identity, count = record.identity, 0
            count += committed
            record.known = known = record.known + committed
            record.computed = known - 1  # the next step decodes from the newest token
            if drafted:
                record.acceptance.verified(drafted, accepted, record.chances)
            elif record.can_draft:
                record.acceptance.unguessed += committed
            record.waiting(pending, waiting, complete, chances, self._token_cost)
            record.told_before, record.told_at = record.told_at, now
            record.emitted += committed
            if record.first_at is None:
                record.first_at = now
            if record.promised:
                record.schedule()
                record.tokens_per_verdict.observe(committed)
                record.verified_per_verdict.observe(1 + drafted + alternatives)
            records.append(record)
        if identity is not None:
            tokens[identity] = tokens.get(identity, 0) + count
        return records, tokens, None if prefilled else worth

    def _hand_out(self, records: Sequence[SessionRecord], grants: Sequence[Grant], now: float) -> dict[int, Grant]:
        """Give sessions their grants, and their places among those who are ready or wait. Returns what they are given."""
        local, in_rounds = LOCAL, ROUND  # asked of every verdict
        given = {record.session: local for record in records}
        issued: dict[int, Grant] = {id(local): local}
        """By the policy's own, of which there are few."""
        apart: dict[int, SessionRecord] = {}
        """Those who wait for their draft now or did. Everybody else was ready and is again."""
        for record, chosen in zip(records, grants, strict=True):
            before = record.grant
            if chosen is local and before is local:
                continue
            grant = issued.get(id(chosen))
            if grant is None:
                grant = issued[id(chosen)] = self._issued(chosen)
            session = record.session
            given[session] = record.grant = grant
            record.told.append((record.known, now))
            if chosen.mode is in_rounds or before.mode is in_rounds:
                apart[session] = record
        if apart:
            records = [record for record in records if record.session not in apart]
        self._queue.decoded(records)
        self._place(apart.values(), now)
        return given

    def _shape(self, items: Iterable[PlanItem | ItemOutcome]) -> StepShape:
        """Shape of a step, before its outcome is committed. Sessions closed meanwhile no longer say how long they were."""
        tokens = cached = pairs = 0
        for item in items:
            record = self._records.get(item.session)
            if record is not None:
                new, old = item.tokens, record.computed
                tokens += new
                cached += old
                pairs += new * (old + new)
        return StepShape(tokens, cached, pairs)

    def preempted(self, session: int, now: float) -> None:
        """The session's pages are gone: everything known is to be computed again."""
        record = self._records[session]
        record.computed, record.ready_at = 0, now
        self._queue.place(record, now)

    def _issued(self, grant: Grant) -> Grant:
        """A policy's grant with what goes for everybody at present."""
        if grant.mode is Mode.LOCAL:
            return grant
        return Grant(grant.mode, grant.length, self._alternatives, self._token_cost)

    def _place(self, records: Iterable[SessionRecord], now: float) -> None:
        """With new grants. A round waits for its draft only so long: a drafter that has died must not hold up its user."""
        longest, steps = self.config.draft_wait_seconds, PATIENCE_STEPS * self._view.step_seconds.value
        place = self._queue.place
        for record in records:
            grant = record.grant
            if grant.mode is ROUND:
                each, trip, patience = record.draft_seconds.value, record.round_trip.value, longest
                if each and trip:
                    usual = PATIENCE * (grant.length * each + trip) + steps
                    patience = usual if usual < longest else longest
                record.draft_deadline = now + patience
            place(record, now)

    def _preempt(self, ready: list[SessionRecord]) -> Plan:
        """Nobody fits: the youngest session with pages gives them back, if it is younger than the oldest one that is ready.
        Else those that are ready wait for older ones, which their draft or its deadline will wake."""
        age = attrgetter("opened_at", "session")
        oldest = age(min(ready, key=age))
        younger = [record for record in self if record.computed and age(record) > oldest]
        if not younger:
            return Plan(wake_at=self._queue.next_deadline())
        return Plan(preempt=(max(younger, key=age).session,))

    def check_integrity(self) -> None:
        """Raises AssertionError where a count cannot be right. Called by tests after every event."""
        for record in self:
            assert 0 <= record.computed < record.known, record
            assert record.drafted >= 0 and record.alternatives >= 0, record
            assert record.can_draft or record.grant == LOCAL, record
        self._queue.check_integrity(self._records)
        sessions = sum(one.sessions for one in self._identities.active())
        assert sessions == len(self._records), (sessions, len(self._records))
