"""`slo`: service classes decide. Latest start times, required progress first, then value for time; nobody's deadline is
broken by an addition, prefill fills what is left, and nobody starves.

A ready session's next token is due at some time (never, without a target). A step that ends after the earliest of these
that can still be met would break it, so nothing is added that makes the step so long but the tokens of others that are due
as well. In this order sessions are taken:

1. the one that has waited longest, once it has waited STARVED steps: so everybody is served in the end
2. those that cannot wait for another step, earliest due first, with their drafts
3. the others, token by token, by value: the chance that it counts, weighted by the gradient of the identity's log goodput;
   per second that it takes, where time is short. So identities are served in turn, whatever their number of streams
4. prefill, in the time, tokens and pages that are left; half of a step's tokens are kept for it while somebody waits

While somebody who could keep its pace is late, or waits for a first token that was promised, sessions that are ahead of their
pace stand back (pacing); not for those for whom there are no pages, which time does not help. A prompt is begun only if there
are pages for all of it. A step is never empty: what all that leaves out comes in at the end if nothing else has. But it may
wait a moment, no longer than its fixed part, for a draft that is almost there (pause.py).

After WISP (arXiv 2601.11652) and AdaServe's required progress; pacing and the shared price of time are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice

from scheduler.batching.pause import worth_waiting
from scheduler.budget import StepBudget
from scheduler.estimators import HIGHEST
from scheduler.ready import Ready
from scheduler.types import SessionRecord
from scheduler.view import View

STARVED = 16.0
"""Steps that somebody may wait before it goes first."""
HORIZON = 2.0
"""Steps: whoever is due within that cannot be left for the next one."""
AHEAD = 1.02
"""Tokens out against those due by now, from which on a session stands back: what it is ahead, somebody waits for."""
CATCHING_UP = 1.15
"""Times its pace that a session which is late is to be given."""
PROBE = 16
Run = tuple[float, Iterable[SessionRecord]]
"""What an own token of each of some sessions counts, and the sessions."""
Queue = tuple[float, Iterable[SessionRecord], Iterator[Run]]
"""The first run of an identity, and the others."""
NO_MORE: Iterator[Run] = iter(())
Turn = tuple[
    float, int, int, tuple[Iterable[SessionRecord], Iterator[Run]] | None, tuple[float, int, list[SessionRecord]] | None
]
"""What a token is worth at most, as a negative number; a number for who comes first of equals; and what it is: a drafted one
of the session in that place, one of the next run of an identity, or a drafted one of a run that was not looked at, whose own
tokens were worth so much and which begins in that place."""
PREFILL_SHARE = 2
"""One in so many of a step's tokens is kept for prefill while somebody waits for it."""


class Slo:
    def __init__(self, view: View) -> None:
        self._view = view
        self._paused_at: float | None = None
        """Since when nobody was served, for a draft to come."""
        self._lost = 0
        """Steps in which somebody was late whose pace no step could keep, as far as is known."""

    def pause(self, ready: Ready, waiting: Collection[SessionRecord], now: float) -> float | None:
        """Of all pauses before a step no longer than its fixed part; none while anybody who is ready is due."""
        if not waiting:
            self._paused_at = None
            return None
        fixed, started = self._view.step_time.coefficients[0], self._paused_at
        until = None
        if not (ready.targets and ready.due_before(now + HORIZON * self._view.step_seconds.value, 1)[0]):
            until = worth_waiting(ready, waiting, now, float(fixed))
        if until is None or (started is not None and until > started + fixed):
            self._paused_at = None
            return None
        if started is None:
            self._paused_at = now
        return until

    def fill(self, ready: Ready, budget: StepBudget, now: float) -> None:
        if not ready.targets and _take_all(ready, budget):
            return
        step = Step(self._view, budget, now)
        step.take_starved(ready.oldest())
        soon, later = ready.due_before(step.critical, budget.tokens) if ready.targets else ([], math.inf)
        step.limit_by(soon, later)
        required = step.urgent(soon)
        step.take_required(required)
        if budget.items and (self._asks(step, required) or step.full):
            return
        newcomers = any(record.due < math.inf and budget.fits(record) for record in ready.prefills.values())
        pacing = newcomers or any(step.late(record) and budget.fits(record) for record in soon)
        step.take_in_turn(ready, pacing)
        if not budget.items:
            step.take_anything(ready)

    def _asks(self, step: Step, required: Sequence[SessionRecord]) -> bool:
        """Steps that are always as full as that never show what a small one takes. So while somebody is late and no step
        seems short enough, every PROBE-th one is left to those who are late."""
        if step.limited or not any(record.service.tpot_seconds is not None for record in required):
            return False
        self._lost += 1
        return self._lost % PROBE == 0


def _take_all(ready: Ready, budget: StepBudget) -> bool:
    """Where nothing is due and there is room for all, there is nothing to decide."""
    room = min(budget.tokens, budget.free_pages)  # at worst each token begins a page
    if len(ready) > room:
        return False
    tokens = sum([record.known - record.computed + record.drafted for record in ready])
    if tokens > room:
        return False
    if tokens == len(ready):  # and nobody brings a draft
        return budget.decode(list(ready))
    for record in ready:
        if record.known - record.computed > 1:
            budget.prefill(record)
        else:
            budget.verify(record)
    return True


class Turns:
    """Tokens one by one to whom they are worth most: w for a session's own, w s_j for its j-th drafted one, where s_j is the
    chance that it and all before it are right: as the drafter says, or a^j. That falls with j, so this is exact.

    All sessions of an identity have its goodput, so they come in the order in which they became ready, and those of one worth
    all at once, as a run: a heap holds the next run of each identity, and drafted tokens. Those of a run are looked at once it
    could be their turn, and not before: where many wait for tokens of their own it never is.
    """

    def __init__(self, queues: Iterable[Queue]) -> None:
        self._heap: list[Turn] = [
            (-worth, number, 0, (run, others), None) for number, (worth, run, others) in enumerate(queues)
        ]
        heapify(self._heap)

    def share_out(self, tokens: int) -> tuple[list[SessionRecord], dict[int, int]]:
        """Who gets some of `tokens` tokens, who is given one first before others; and how many drafted ones beside their own,
        by their places, where it is any."""
        heap, pushed = self._heap, len(self._heap)
        records: list[SessionRecord] = []
        beside: dict[int, int] = {}
        while tokens > 0 and heap:
            negative, order, place, queue, unseen = heappop(heap)
            if queue is not None:
                run, runs = queue
                taken = list(islice(run, tokens))
                tokens -= len(taken)
                pushed += 1
                heappush(heap, (negative * HIGHEST, pushed, 0, None, (negative, len(records), taken)))
                records += taken
                for worth, following in runs:
                    pushed += 1
                    heappush(heap, (-worth, pushed, 0, (following, runs), None))
                    break
            elif unseen is not None:
                negative, first, taken = unseen
                for place, record in enumerate(taken, first):
                    if record.drafted and record.grant.length:
                        heappush(heap, (negative * record.chance(0), order, place, None, None))
            else:
                record = records[place]
                tokens -= 1
                drafted = beside[place] = beside.get(place, 0) + 1
                if drafted < record.offered:
                    pushed += 1
                    heappush(heap, (negative * record.chance(drafted), pushed, place, None, None))
        return records, beside


def queues_by_worth(
    owns: Iterable[Mapping[int, SessionRecord]], worth: Callable[[SessionRecord], float | None]
) -> list[Queue]:
    """Where sessions of an identity differ in what an own token is worth; None for who takes no part."""
    every = [_runs(own.values(), worth) for own in owns]
    return [(*first, others) for others in every for first in islice(others, 1)]


def _runs(records: Iterable[SessionRecord], worth: Callable[[SessionRecord], float | None]) -> Iterator[Run]:
    run: list[SessionRecord] = []
    before = 0.0
    for record in records:
        value = worth(record)
        if value is None:
            continue
        if run and value != before:
            yield before, run
            run = []
        run.append(record)
        before = value
    if run:
        yield before, run


def kept_for_prefill(prefills: Iterable[SessionRecord], tokens: int) -> int:
    """Tokens of the step that verification leaves to prefill: whoever waits for a first token has a share of each step."""
    wanted = 0
    for record in prefills:
        wanted += record.behind
        if wanted >= tokens:
            break
    return min(wanted, -(-tokens // PREFILL_SHARE))


class Step:
    """A step under construction, and how long it will take."""

    def __init__(self, view: View, budget: StepBudget, now: float) -> None:
        margin = 1.0 + view.step_time.error
        fixed, token, cached, pair = (one * margin for one in view.step_time.coefficients)
        self._coefficients = fixed, token, cached, pair
        self._token, self._cached, self._pair = token, cached, pair
        self._budget = budget
        self._now = now
        self._end = now + fixed
        """When the step ends with what is in it so far."""
        self._typical = max(view.step_seconds.value, fixed)
        self._limit = math.inf
        """When it must have ended."""
        self._taken: dict[int, SessionRecord] = {}
        self._anything = False

    @property
    def limited(self) -> bool:
        """Whether somebody's token can still come in time."""
        return self._limit != math.inf

    @property
    def critical(self) -> float:
        """Whoever is due before that cannot be left for the next step, roughly."""
        return self._end + (HORIZON + 1.0) * self._typical

    def take_starved(self, oldest: SessionRecord) -> None:
        """Whoever has waited longest goes first once it was too long, whatever else is due."""
        if self._now - oldest.ready_at > STARVED * self._typical:
            self.take(oldest)

    def limit_by(self, soon: Sequence[SessionRecord], later: float) -> None:
        """The earliest time due that this step can still meet. `soon` are those due first, earliest first; the next one is due
        `later`."""
        end, token, cached, pair = self._end, self._token, self._cached, self._pair
        limit = later if end + token <= later else math.inf
        for record in soon:
            due, known, computed = record.due, record.known, record.computed
            if due >= limit:
                break  # nor is anybody after it due before the limit
            soonest = end + (
                (known - computed) * (token + known * pair) + computed * cached
            )  # `_cost` of all it waits for
            if soonest > due:
                due = self._catching_up(record)
            if soonest <= due < limit:
                limit = due
        self._limit = limit

    def urgent(self, soon: Sequence[SessionRecord]) -> list[SessionRecord]:
        """Those that cannot wait for another step."""
        next_one = self._end + HORIZON * self._typical
        return [
            record
            for record in soon
            if record.due < next_one or record.due - self._cost(record, record.known - record.computed - 1) < next_one
        ]

    def late(self, record: SessionRecord) -> bool:
        """Late, and of a class whose pace this verifier can keep at all."""
        pace = record.service.tpot_seconds
        return record.due < self._now and (pace is None or pace >= self._typical)

    def take_in_turn(self, ready: Ready, pacing: bool) -> None:
        """What need not be in this step, as far as it fits: by worth; prefill; then what prefill has left."""
        limited, taken, now, decodes = self.limited, self._taken, self._now, ready.decodes
        shares = {one: one.share.weight / (one.goodput.at(now) or 1.0) for one in decodes}

        def takes_part(record: SessionRecord) -> bool:
            return record.session not in taken and not (pacing and record.due - now > self._allowance(record))

        def worth(record: SessionRecord) -> float | None:
            if not takes_part(record):
                return None
            weight = shares[record.identity] * record.service.weight
            # Where time is short, what a token takes of it counts, too.
            return weight / self._cost(record, 1) if limited else weight

        if limited or ready.weighted:
            queues = queues_by_worth(decodes.values(), worth)
        else:
            asked = decodes.keys() if pacing else {record.identity for record in taken.values()}
            queues = [
                (shares[one], filter(takes_part, own.values()) if one in asked else own.values(), NO_MORE)
                for one, own in decodes.items()
            ]
        spare = kept_for_prefill(ready.prefills.values(), self._budget.tokens)
        records, beside = Turns(queues).share_out(self._budget.tokens - spare)
        if limited or not self._take_together(records, beside, spare):
            for place, record in enumerate(records):
                self.take(record, spare, beside.get(place, 0))
        for record in ready.prefills.values():
            if self.full:
                return
            self.take(record)
        for own in decodes.values():
            for record in own.values():
                if self.full:
                    return
                if takes_part(record):
                    self.take(record)

    def _take_together(self, records: Sequence[SessionRecord], beside: Mapping[int, int], spare: int) -> bool:
        """Where no time is short, take all to whom no drafted token was given at once, then the others; or nobody, where not
        all of the first fit."""
        single = [record for place, record in enumerate(records) if place not in beside] if beside else records
        if not self._budget.decode(single):
            return False
        self._end = self._now + self._budget.shape.seconds(self._coefficients)
        for place in sorted(beside):
            self.take(records[place], spare, beside[place])
        if self._budget.tokens > 0:  # else nobody else is asked
            self._taken.update({record.session: record for record in single})
        return True

    @property
    def full(self) -> bool:
        """No token more, or no time for one."""
        return self._budget.tokens <= 0 or self._end + self._token > self._limit

    def take_required(self, required: Sequence[SessionRecord]) -> None:
        """Those that cannot wait, with their drafts, whatever it breaks: leaving some out would cost them a whole step more,
        and tokens without the draft cost more than with it. Prefill as far as they leave time."""
        limit, self._limit = self._limit, math.inf
        prefills = []
        for record in required:
            if self._budget.tokens <= 0:
                break
            if record.known - record.computed > 1:
                prefills.append(record)
            else:
                self.take(record)
        self._limit = limit
        for record in prefills:
            self.take(record)

    def take(self, record: SessionRecord, spare: int = 0, draft: int | None = None) -> bool:
        """Take a session, or the chunk of its prefill that fits, if nobody's deadline breaks by it."""
        if record.session in self._taken:
            return False
        behind = record.known - record.computed
        if behind > 1:
            chunk = self._chunk(record, behind)
            if chunk <= 0 or not (self._anything or self._budget.fits(record)):
                return False  # half a prompt holds pages that who decodes could use, and helps nobody
            if not self._budget.prefill(record, chunk):
                return False
            end = self._end + self._cost(record, chunk)
        else:
            wanted = record.offered if draft is None else draft
            end = self._end + self._cost(record, behind + wanted)
            if end > self._limit or not self._budget.verify(record, spare, wanted):
                return False
        self._taken[record.session] = record
        self._end = end
        return True

    def take_anything(self, ready: Ready) -> None:
        """Whatever the deadlines: an idle step helps nobody."""
        self._limit, self._anything = math.inf, True
        for record in ready:
            if self.full:
                return
            self.take(record)

    def _chunk(self, record: SessionRecord, behind: int) -> int:
        """Tokens of prefill for which there is time."""
        if self._limit == math.inf:
            return behind
        left = self._limit - self._end - record.computed * self._cached
        each = self._token + (record.computed + behind) * self._pair
        return min(behind, int(left / each)) if left > 0.0 else 0

    @staticmethod
    def _catching_up(record: SessionRecord) -> float:
        """When the next token of a session that is late should come."""
        pace = record.service.tpot_seconds
        return record.ready_at + pace / CATCHING_UP if pace is not None and record.first_at is not None else record.due

    def _cost(self, record: SessionRecord, tokens: int) -> float:
        """Seconds that so many tokens of a session add to a step."""
        computed = record.computed
        return tokens * (self._token + (computed + tokens) * self._pair) + computed * self._cached

    def _allowance(self, record: SessionRecord) -> float:
        """How long before it is due a token of a session that stands back may come."""
        pace = record.service.tpot_seconds
        if pace is None or record.first_at is None:
            return math.inf
        return pace + (AHEAD - 1.0) * (self._now - record.first_at)
