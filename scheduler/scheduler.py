"""The scheduler: sessions' records, `plan` and `commit`. The policies it is built from decide; it keeps the counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from scheduler import batching, speculation
from scheduler.budget import StepBudget, pages
from scheduler.estimators import Acceptance, AcceptancePool, Goodput, Smoothed
from scheduler.step_time import UNPROFILED, StepProfile, StepShape, StepTimeModel
from scheduler.types import ESTIMATE_SHARE, ItemOutcome, Outcome, Plan, PlanItem, SessionRecord
from scheduler.view import View
from specfleet.core.step import PAGE_SIZE
from specfleet.core.types import LOCAL, Grant, Mode

MAX_IDENTITIES = 1024
"""Goodput records kept before those that are long idle are let go of."""
MAX_SHADOW = 64
"""Tokens that one shadow report may count for: it is the drafter's word only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    speculation: str = "fixed:4"
    """Speculation policy, by name."""
    batching: str = "fifo"
    """Batching policy, by name."""
    max_step_tokens: int = 512
    """Most tokens in one step."""
    page_size: int = PAGE_SIZE
    """Tokens in a KV page."""
    draft_wait_seconds: float = 1.0
    """In ROUND, how long to wait for a draft before the verifier decodes without it."""
    profile: StepProfile = UNPROFILED
    """What steps took when somebody measured them; refitted while serving."""
    seed: int = 0
    """For policies that draw."""


class Scheduler:
    """Call `open`, `drafted` and `close` as things happen, `plan` before a step and `commit` after it. Never waits."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self._records: dict[int, SessionRecord] = {}
        self._view = View(StepTimeModel(config.profile), self._records)
        self._pool = AcceptancePool()
        self._goodput: dict[str, Goodput] = {}
        self._speculation = speculation.build(config.speculation, self._view, np.random.default_rng(config.seed))
        self._batching = batching.build(config.batching)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[SessionRecord]:
        return iter(self._records.values())

    @property
    def step_time(self) -> StepTimeModel:
        return self._view.step_time

    def open(
        self,
        session: int,
        *,
        known: int,
        computed: int,
        can_draft: bool,
        now: float,
        identity: str = "",
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
            goodput=self._goodput_of(identity, now),
            draft_seconds=Smoothed(ESTIMATE_SHARE, draft_seconds),
            round_trip=Smoothed(ESTIMATE_SHARE, round_trip),
        )
        self._records[session] = record
        self._grant(record, self._speculation.opened(record, now) if can_draft else LOCAL, now)
        return record.grant

    def _goodput_of(self, identity: str, now: float) -> Goodput:
        """One record for all sessions of an identity, kept for a while after the last of them."""
        if len(self._goodput) > MAX_IDENTITIES and identity not in self._goodput:
            self._goodput = {name: one for name, one in self._goodput.items() if not one.idle(now)}
        return self._goodput.setdefault(identity, Goodput(now))

    def drafted(
        self, session: int, pending: int, complete: bool, now: float, *, tokens: int = 0, seconds: float = 0.0
    ) -> None:
        """`pending` drafted tokens now wait behind the session's text; `complete` if no more will come. The message that
        said so brought `tokens` tokens, drafted in `seconds`."""
        record = self._records[session]
        waited = self._waits(record)
        if waited and complete and record.told_at:
            record.round_trip.observe(now - record.told_at - seconds)
        if tokens:
            record.draft_seconds.observe(seconds / tokens)
        was_ready = self._ready(record, now)
        record.drafted, record.draft_complete = pending, complete
        if not was_ready:
            record.ready_at = now

    def shadowed(self, session: int, accepted: int, tested: int) -> None:
        """In LOCAL: of `tested` streamed tokens the drafter would have guessed `accepted`."""
        self._records[session].acceptance.tested(accepted, min(tested, MAX_SHADOW))

    def close(self, session: int) -> None:
        record = self._records.pop(session, None)
        if record is not None:
            self._speculation.closed(record)

    def plan(self, now: float, free_pages: int) -> Plan:
        """The next step: never more than `max_step_tokens` tokens or `free_pages` pages, no session twice.

        When nobody who is ready finds a page, the session that came last gives its pages back and waits.
        """
        ready = [record for record in self._records.values() if self._ready(record, now)]
        for record in ready:
            if self._waits(record):
                # It waits for a step only since it has stopped waiting for its draft.
                record.ready_at = max(record.ready_at, record.draft_deadline)
        if not ready:
            return Plan(wake_at=self._next_deadline(now))
        budget = StepBudget(self.config.max_step_tokens, free_pages, self.config.page_size)
        self._batching.fill(ready, budget, now)
        if budget.items:
            return Plan(tuple(budget.items), seconds=self.step_time.predict(self._shape(budget.items)))
        return self._preempt(ready, now)

    def commit(self, outcome: Outcome, now: float) -> dict[int, Grant]:
        """Learn from a step; returns the next grant of every session that got a verdict."""
        grants = {}
        self.step_time.observe(self._shape(outcome.items), outcome.seconds)
        self._view.step_seconds.observe(outcome.seconds)
        self._speculation.stepped(outcome, now)
        for item in outcome.items:
            record = self._records.get(item.session)
            if record is None:
                continue
            record.known += item.committed
            # The newest committed token is known but not computed: the next step decodes from it.
            record.computed = record.known - 1 if item.committed else record.computed + item.fed
            self._view.wait_seconds.observe(now - outcome.seconds - record.ready_at)
            record.ready_at = now
            if item.committed:
                record.acceptance.verified(item.drafted, item.accepted)
                record.goodput.observe(item.committed, now)
                record.drafted, record.draft_complete, record.told_at = item.pending, False, now
                grants[item.session] = self._decide(record, item, now)
        return grants

    def _shape(self, items: Iterable[PlanItem | ItemOutcome]) -> StepShape:
        """Shape of a step, before its outcome is committed. Sessions closed meanwhile no longer say how long they were."""
        return StepShape.of(
            (item.tokens, record.computed) for item in items if (record := self._records.get(item.session)) is not None
        )

    def preempted(self, session: int, now: float) -> None:
        """The session's pages are gone: everything known is to be computed again."""
        record = self._records[session]
        record.computed, record.ready_at = 0, now

    def _decide(self, record: SessionRecord, item: ItemOutcome, now: float) -> Grant:
        grant = self._speculation.decided(record, item, now) if record.can_draft else LOCAL
        self._grant(record, grant, now)
        return grant

    def _grant(self, record: SessionRecord, grant: Grant, now: float) -> None:
        record.grant = grant
        record.draft_deadline = now + self.config.draft_wait_seconds

    def _ready(self, record: SessionRecord, now: float) -> bool:
        """Whether a step can do something for the session."""
        return not self._waits(record) or now >= record.draft_deadline

    @staticmethod
    def _waits(record: SessionRecord) -> bool:
        """Whether it waits for its draft: only in ROUND, and only once it is prefilled."""
        if record.grant.mode is not Mode.ROUND or record.prefilling:
            return False
        return record.drafted < record.grant.length and not record.draft_complete

    def _next_deadline(self, now: float) -> float | None:
        """When the first of those who wait for a draft stops waiting."""
        return min((record.draft_deadline for record in self if not self._ready(record, now)), default=None)

    def _preempt(self, ready: list[SessionRecord], now: float) -> Plan:
        """Nobody fits: the youngest session with pages gives them back, if it is younger than the oldest one that is ready.
        Else those that are ready wait for older ones, which their draft or its deadline will wake."""
        age = attrgetter("opened_at", "session")
        oldest = age(min(ready, key=age))
        younger = [record for record in self if record.computed and age(record) > oldest]
        if not younger:
            return Plan(wake_at=self._next_deadline(now))
        return Plan(preempt=(max(younger, key=age).session,))

    def check_integrity(self) -> None:
        """Raises AssertionError where a count cannot be right. Called by tests after every event."""
        for record in self:
            assert 0 <= record.computed < record.known, record
            assert record.drafted >= 0, record
            assert pages(record.computed, self.config.page_size) >= 0
            assert record.can_draft or record.grant == LOCAL, record
