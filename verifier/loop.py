"""The batch loop: plan, run, commit, emit. One task; everything it touches changes between its steps only.

submit ─┐                        ┌─> session.outbox (verdicts)
offer ──┼─> arrivals ─> plan ─> engine.step ─> commit
withdraw┘        ^                              │
                 └──────────── grants <─────────┘
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from scheduler import ItemOutcome, Outcome, Plan, PlanItem, Refusal, Request, Scheduler
from specfleet.core.clock import Clock
from specfleet.core.errors import InternalError, SpecfleetError, StreamInterrupted, Unavailable
from specfleet.core.mailbox import Signal
from specfleet.core.protocol import Draft, Finished, Shadow, Verdict
from specfleet.core.records import made
from specfleet.core.step import Engine, StepItem, StepResult
from specfleet.core.trace import Phase, Tracer
from specfleet.core.types import FinishReason, Grant, Mode, ServiceClass
from verifier.observer import Observer, Silent
from verifier.session import Session

log = logging.getLogger(__name__)

MAX_UNREAD = 512
"""Most messages kept for one session's reader, beside what its connection holds. Whoever lags behind by more has to come back:
a reader that does not read cannot hold memory, here or in the KV cache."""


class BatchLoop:
    """Sessions on one side, engine and scheduler on the other. Clock, engine and scheduler are injected, so that the same
    loop runs in production and in virtual time."""

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        clock: Clock,
        observer: Observer | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """`tracer`: also the engine's, which marks what it does of a step."""
        self._engine = engine
        self._scheduler = scheduler
        self._clock = clock
        self._observer = observer or Silent()
        self._tracer = tracer
        self._sessions: dict[int, Session] = {}
        self._arrivals: list[Session] = []
        self._departures: list[Session] = []
        self._wake = Signal()
        self._planned_in = 0.0
        """Seconds that the last plan took."""
        self.stepping_since: float | None = None
        """When the step that runs now began."""
        self.step_seconds = 0.0
        """Smoothed duration of a step."""
        self._last_step = 0.0
        """Duration of the newest step."""
        self.preemptions = 0
        """Sessions whose pages were given to others, since the start."""

    @property
    def sessions(self) -> int:
        """Sessions that hold pages or wait for them."""
        return len(self._sessions) + len(self._arrivals)

    @property
    def prefilling(self) -> int:
        """Sessions still waiting for their first token."""
        return len(self._arrivals) + sum(record.prefilling for record in self._scheduler)

    @property
    def free_kv_tokens(self) -> int:
        return self._engine.free_pages * self._engine.page_size

    def service_class(self, name: str) -> ServiceClass:
        """Raises InvalidRequest where there is none of that name."""
        return self._scheduler.service_class(name)

    def refusal(self, request: Request) -> Refusal | None:
        """Why a session cannot be let in now, if so."""
        waiting = [Request(one.identity, one.service, len(one.tokens)) for one in self._arrivals]
        return self._scheduler.admit(request, waiting, self._clock())

    def submit(self, session: Session) -> None:
        """Let a session take part from the next step on; `session.opened` then has its first grant."""
        session.opened_at = self._clock()
        self._arrivals.append(session)
        self._wake.set()

    def waited(self, session: Session) -> float:
        """Seconds since it was submitted."""
        return self._clock() - session.opened_at if session.opened_at else 0.0

    def offer(self, session: Session, draft: Draft) -> None:
        """Take in a draft. Raises what `Session.offer` raises."""
        offered = session.offer(draft)
        if offered.stale:
            self._stale(offered.stale)
        number = session.number
        if number in self._sessions:
            self._scheduler.drafted(
                number,
                session.pending,
                session.complete,
                self._clock(),
                tokens=len(draft.tokens),
                seconds=draft.draft_seconds,
                alternatives=session.alternatives,
                confirmed=draft.confirmed,
                chances=session.chances,
            )
            self._wake.set()
        elif session not in self._arrivals:
            self._stale(session.abandon())  # it came too late

    def _stale(self, guesses: int) -> None:
        if guesses:
            self._observer.stale(guesses)

    def shadow(self, session: Session, report: Shadow) -> None:
        """Take in what the drafter would have guessed of the text that the verifier wrote alone."""
        if session.number in self._sessions:
            self._scheduler.shadowed(session.number, report.accepted, report.tested, report.draft_seconds_per_token)

    def withdraw(self, session: Session) -> None:
        """Its owner is gone: pages are free again before the next step is planned."""
        self._departures.append(session)
        self._wake.set()

    def move(self, reason: str) -> None:
        """Tell everybody to go on elsewhere, while a step runs, too. What they hold goes when their owners withdraw them."""
        for session in (*self._sessions.values(), *self._arrivals):
            error = Unavailable(reason)
            session.outbox.put(error)
            if not session.opened.done():
                session.opened.set_exception(error)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wake.clear()
            self._settle()
            now = self._clock()
            plan = self._scheduler.plan(now, self._engine.free_pages)
            self._planned_in = self._clock() - now
            if plan.items:
                if self._tracer is not None:
                    self._tracer.start(now)
                    self._tracer.mark(Phase.PLAN)
                await self._step(plan)
            elif plan.preempt:
                self._preempt(plan)
            else:
                await self._idle(plan.wake_at)

    async def _step(self, plan: Plan) -> None:
        """One step for everybody in `plan`. Whose part of it the engine cannot do ends, and nobody else."""
        items = [self._item(item) for item in plan.items]
        start = self.stepping_since = self._clock()
        try:
            results = await self._computed(items)
        finally:
            self.stepping_since = None
        seconds = self._clock() - start
        done: list[tuple[PlanItem, StepItem, StepResult]] = []
        for planned, item, result in zip(plan.items, items, results, strict=True):
            if isinstance(result, SpecfleetError):
                self._end(self._sessions[planned.session], result)
            else:
                done.append((planned, item, result))
        if done:
            self._commit(plan, done, start, seconds)

    async def _computed(self, items: list[StepItem]) -> list[StepResult | SpecfleetError]:
        """A result or an error for each item. A step that fails has left every sequence as it was, so its halves are tried:
        what only a large step has no memory for is done in small ones, and what is one session's fault ends that one."""
        try:
            return [*await self._engine.step(items)]
        except SpecfleetError as error:
            failure = error
        except Exception as error:
            # With the traceback where nothing is left to try.
            log.warning("step failed", extra={"sessions": [item.sequence for item in items]}, exc_info=len(items) == 1)
            failure = InternalError("the engine failed in this session's step; the server's log has the reason")
            failure.__cause__ = error
        if len(items) == 1:
            return [failure]
        half = len(items) // 2
        return [*await self._computed(items[:half]), *await self._computed(items[half:])]

    def _item(self, planned: PlanItem) -> StepItem:
        session = self._sessions[planned.session]
        feed = session.tokens[session.computed : session.computed + planned.feed]
        draft, q = session.take_draft(planned.draft)
        beside = session.take_alternatives(len(draft), planned.alternatives) if planned.alternatives else ()
        number, sampling = session.number, session.sampling
        return made(
            StepItem,
            (number, feed + draft, sampling, len(draft), planned.sample, q, False, False, False, False, beside),
        )

    def _commit(
        self, plan: Plan, done: list[tuple[PlanItem, StepItem, StepResult]], start: float, seconds: float
    ) -> None:
        waits: dict[int, float] = {}
        outcomes: list[ItemOutcome] = []
        verdicts: list[tuple[Session, Verdict]] = []
        tokens, ready_at = 0, self._scheduler.ready_at
        for planned, item, result in done:
            number, drafted, beside = planned.session, item.draft, len(item.alternatives)
            session = self._sessions[number]
            waits[number] = start - ready_at(number)
            tokens += len(item.tokens) + beside
            accepted = committed = 0
            if planned.sample:
                verdict = session.commit(result, drafted, beside)
                verdicts.append((session, verdict))
                accepted, committed = verdict.accepted, len(verdict.tokens)
            else:
                session.computed += planned.feed
            left, others, complete, chances = session.pending, session.alternatives, session.complete, session.chances
            outcome = (number, planned.feed, drafted, accepted, committed, left, beside, others, complete, chances)
            outcomes.append(made(ItemOutcome, outcome))
        now = start + seconds
        shape = plan.shape if len(done) == len(plan.items) else None
        grants = self._scheduler.commit(Outcome(tuple(outcomes), seconds, shape), now)
        self._observer.decided(self._planned_in + self._clock() - now)
        self.step_seconds += 0.1 * (seconds - self.step_seconds) if self.step_seconds else seconds
        self._observer.step(seconds, plan.seconds, len(done), tokens)
        # Whoever becomes ready while a step runs waits for its end; what is beyond that is want of room.
        queued = sum([max(0.0, waits[session.number] - self._last_step) for session, _ in verdicts])
        self._observer.alone(seconds * plan.plain_seconds / plan.seconds if plan.seconds else seconds, queued)
        self._last_step = seconds
        for session, verdict in verdicts:
            session.first_at, session.last_at = session.first_at or now, now
            self._observer.verdict(session.service.name, verdict, waits[session.number])
            session.outbox.put(verdict.granted(self._grant(session, grants[session.number])))
            if session.finished is not None:
                self._finish(session)
            elif len(session.outbox) > MAX_UNREAD:
                self._end(session, _unread(session))
        if self._tracer is not None:
            self._trace(self._tracer, verdicts, waits, start)

    @staticmethod
    def _trace(
        tracer: Tracer, verdicts: Sequence[tuple[Session, Verdict]], waits: Mapping[int, float], start: float
    ) -> None:
        tracer.mark(Phase.REPLY)
        rounds = [session for session, verdict in verdicts if verdict.mode is Mode.ROUND and verdict.drafted]
        for session in rounds:
            # Until the plan began, whose own time is the step's.
            tracer.round(Phase.QUEUE, start - waits[session.number], tracer.started_at, f"session {session.number}")
        tracer.stepped(len(rounds))

    def _grant(self, session: Session, grant: Grant) -> Grant:
        self._observer.granted(session.service.name, session.mode, grant.mode, grant.length)
        session.mode = grant.mode
        return grant

    def _finish(self, session: Session) -> None:
        assert session.finished is not None
        session.outbox.put(Finished(session.finished, session.usage))
        tokens = session.output_length - session.resumed_length
        self._observer.served(session.service.name, tokens, session.met)
        self._release(session, session.finished)

    def _end(self, session: Session, error: SpecfleetError) -> None:
        """Its pages are free from now on; its owner gets to know why."""
        session.outbox.put(error)
        if not session.opened.done():
            session.opened.set_exception(error)
        self._release(session, FinishReason.ERROR)

    def _settle(self) -> None:
        """Between steps: let go of who left, take in who came."""
        departures, self._departures = self._departures, []
        for session in departures:
            if session in self._arrivals:
                self._arrivals.remove(session)
            elif session.number in self._sessions:
                self._release(session, FinishReason.CANCELLED)
        arrivals, self._arrivals = self._arrivals, []
        for session in arrivals:
            self._admit(session)

    def _admit(self, session: Session) -> None:
        cached = self._engine.open(session.number, session.tokens)
        session.computed = cached
        session.cached_tokens = min(cached, session.prompt_length)
        self._sessions[session.number] = session
        now = self._clock()
        grant = self._scheduler.open(
            session.number,
            known=len(session.tokens),
            computed=cached,
            can_draft=session.can_draft,
            now=now,
            identity=session.identity,
            service=session.service,
            draft_seconds=session.draft_seconds,
            round_trip=session.round_trip,
        )
        if session.pending or session.complete:
            self._scheduler.drafted(
                session.number,
                session.pending,
                session.complete,
                now,
                alternatives=session.alternatives,
                chances=session.chances,
            )
        self._observer.session_opened(bool(session.resumed_length))
        granted = self._grant(session, grant)
        if not session.opened.done():  # its owner was cancelled while it waited, and has yet to withdraw it
            session.opened.set_result(granted)

    def _preempt(self, plan: Plan) -> None:
        """Give back the pages of who must wait; everything it knows is computed again when there is room."""
        for number in plan.preempt:
            session = self._sessions[number]
            self._engine.close(number)
            session.computed = self._engine.open(number, session.tokens[:1])
            self._scheduler.preempted(number, self._clock())
            self.preemptions += 1
            log.info("session preempted", extra={"session": number, "tokens": len(session.tokens)})

    def _release(self, session: Session, reason: FinishReason) -> None:
        del self._sessions[session.number]
        self._scheduler.close(session.number)
        self._engine.close(session.number)
        self._stale(session.abandon())
        self._observer.session_finished(session.service.name, reason)

    async def _idle(self, wake_at: float | None) -> None:
        """Wait for something to happen, or for the moment the scheduler named."""
        if wake_at is None:
            await self._wake.wait()
            return
        try:
            async with asyncio.timeout(max(0.0, wake_at - self._clock())):
                await self._wake.wait()
        except TimeoutError:
            pass


def _unread(session: Session) -> StreamInterrupted:
    return StreamInterrupted(
        f"{len(session.outbox)} messages wait to be read, at most {MAX_UNREAD} may; go on behind what came",
        request_id=session.request_id,
    )
