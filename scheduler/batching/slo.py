"""`slo`: service classes decide. Latest start times, required progress first, then value for time; nobody's deadline is
broken by an addition, prefill fills what is left, and nobody starves.

A ready session's next token is due at some time (never, without a target). A step that ends after the earliest of these
that can still be met would break it, so nothing is added that makes the step so long. In this order sessions are taken:

1. the one that has waited longest, once it has waited STARVED steps: so everybody is served in the end
2. those that cannot wait for another step, earliest due first
3. the others by value for time: expected tokens, weighted by the gradient of the identity's log goodput, per second that
   they add. Where tokens are short, those worth most: so identities are served in turn, whatever their number of
   streams, and of drafts the tokens likeliest to count
4. prefill, in the time, tokens and pages that are left, of which drafts take none that it could use

While somebody who could keep its pace is late, sessions that are ahead of theirs stand back (pacing). A step is never empty
while anybody is ready: what all that leaves out comes in at the end if nothing else has.

After WISP (arXiv 2601.11652) and AdaServe's required progress; pacing and the shared price of time are ours.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter, itemgetter

from scheduler.budget import StepBudget
from scheduler.estimators import expected_tokens
from scheduler.ready import Ready
from scheduler.types import SessionRecord
from scheduler.view import View

STARVED = 16.0
"""Steps that somebody may wait before it goes first."""
HORIZON = 2.0
"""Steps: whoever is due within that cannot be left for the next one."""
AHEAD = 1.05
"""Tokens out against those due by now, from which on a session stands back."""
CATCHING_UP = 1.15
"""Times its pace that a session which is late is to be given."""
PROBE = 16
PREFILL_SHARE = 4
"""One in so many of a step's tokens is kept for prefill while somebody waits for it."""


class Slo:
    def __init__(self, view: View) -> None:
        self._view = view
        self._lost = 0
        """Steps in which somebody was late whose pace no step could keep, as far as is known."""

    def fill(self, ready: Ready, budget: StepBudget, now: float) -> None:
        if not ready.targets:
            if not _take_all(ready, budget):
                self._take_in_turn(ready, budget, now)
            return
        records = list(ready)
        step = Step(self._view, budget, now)
        step.take_starved(records)
        step.limit_by(records)
        required, others, prefills, ahead = step.sort(records)
        for _, record in required:
            step.take_required(record)
        if budget.items and self._asks(step, required):
            return
        spare = kept_for_prefill([record for _, record in prefills], len(others), budget.tokens)
        left = step.take_others([record for _, record in others], spare)
        for _, record in prefills:
            step.take(record)
        for record in left:
            step.take(record)
        if not budget.items:
            step.take_anything([record for _, record in ahead] or records)

    def _take_in_turn(self, ready: Ready, budget: StepBudget, now: float) -> None:
        """Where nothing is due, but not all fit: tokens by their worth, w for a session's own and w a^j for its j-th drafted
        one.

        All sessions of an identity have its goodput, so they are taken in the order in which they became ready, and only the
        next one of each identity has to be looked at. Whoever has waited longest comes first once it was too long.
        """
        oldest = next(iter(ready))
        if now - oldest.ready_at > STARVED * self._view.step_seconds.value:
            budget.prefill(oldest) if oldest.prefilling else budget.verify(oldest, draft=0)
        decodes = sum(map(len, ready.decodes.values()))
        spare = kept_for_prefill(list(ready.prefills.values()), decodes, budget.tokens)
        taken = {item.session for item in budget.items}
        for record, tokens in in_turn(ready.decodes, budget.tokens - spare, now):
            if record.session not in taken:
                budget.verify(record, spare, tokens - 1)
        taken = {item.session for item in budget.items}
        for record in ready.prefills.values():
            if record.session not in taken:
                budget.prefill(record)
        for own in ready.decodes.values():
            for record in own.values():
                if not budget.tokens:
                    return
                if record.session not in taken:
                    budget.verify(record)

    def _asks(self, step: Step, required: Sequence[tuple[float, SessionRecord]]) -> bool:
        """Steps that are always as full as that never show what a small one takes. So while somebody is late and no step
        seems short enough, every PROBE-th one is left to those who are late."""
        if step.limited or not any(record.service.tpot_seconds is not None for _, record in required):
            return False
        self._lost += 1
        return self._lost % PROBE == 0


def _take_all(ready: Ready, budget: StepBudget) -> bool:
    """Where nothing is due and there is room for all, there is nothing to decide."""
    room = min(budget.tokens, budget.free_pages)  # at worst each token begins a page
    if len(ready) > room:
        return False
    tokens = 0
    for record in ready:
        tokens += record.known - record.computed + record.drafted
        if tokens > room:
            return False
    for record in ready:
        if record.known - record.computed > 1:
            budget.prefill(record)
        else:
            budget.verify(record)
    return True


def in_turn(
    decodes: Mapping[str, Mapping[int, SessionRecord]], tokens: int, now: float
) -> Iterable[tuple[SessionRecord, int]]:
    """Who gets how many of `tokens` tokens, by worth; the first to be given one comes first."""
    queues = [iter(own.values()) for own in decodes.values()]
    given: list[int] = []
    records: list[SessionRecord] = []
    heap: list[tuple[float, int, int]] = []
    for number, queue in enumerate(queues):
        _next_of(queue, number, heap, records, given, now)
    heapq.heapify(heap)
    while tokens > 0 and heap:
        worth, place, number = heapq.heappop(heap)
        record = records[place]
        tokens -= 1
        given[place] += 1
        if given[place] <= record.offered:
            heapq.heappush(heap, (worth * record.acceptance.rate, place, number))
        if given[place] == 1:
            _next_of(queues[number], number, heap, records, given, now, push=True)
    return ((record, count) for record, count in zip(records, given, strict=True) if count)


def _next_of(
    queue: Iterator[SessionRecord],
    number: int,
    heap: list[tuple[float, int, int]],
    records: list[SessionRecord],
    given: list[int],
    now: float,
    push: bool = False,
) -> None:
    """The next session of an identity stands for a token of its own."""
    record = next(queue, None)
    if record is None:
        return
    entry = (-record.weight / (record.identity.goodput.at(now) or 1.0), len(records), number)
    records.append(record)
    given.append(0)
    heapq.heappush(heap, entry) if push else heap.append(entry)


def kept_for_prefill(prefills: Sequence[SessionRecord], others: int, tokens: int) -> int:
    """Tokens of the step that verification leaves to prefill: whoever waits for a first token comes before anybody's draft,
    and has a share of the step even where everybody's own tokens would fill it."""
    if not prefills:
        return 0
    wanted = sum(record.behind for record in prefills)
    return max(min(wanted, -(-tokens // PREFILL_SHARE)), min(wanted, tokens - others))


class Step:
    """A step under construction, and how long it will take."""

    def __init__(self, view: View, budget: StepBudget, now: float) -> None:
        margin = 1.0 + view.step_time.error
        fixed, token, cached, pair = (float(one) * margin for one in view.step_time.coefficients)
        self._token, self._cached, self._pair = token, cached, pair
        self._budget = budget
        self._now = now
        self._end = now + fixed
        """When the step ends with what is in it so far."""
        self._typical = max(view.step_seconds.value, fixed)
        self._limit = math.inf
        """When it must have ended."""
        self._taken: set[int] = set()

    @property
    def limited(self) -> bool:
        """Whether somebody's token can still come in time."""
        return self._limit != math.inf

    def take_starved(self, ready: Sequence[SessionRecord]) -> None:
        """Whoever has waited longest goes first once it was too long, whatever else is due."""
        oldest = min(ready, key=attrgetter("ready_at", "session"))
        if self._now - oldest.ready_at > STARVED * self._typical:
            self.take(oldest, draft=0)

    def limit_by(self, ready: Sequence[SessionRecord]) -> None:
        """The earliest time due that this step can still meet."""
        for record in ready:
            if record.due != math.inf:
                soonest = self._end + self._cost(record, record.behind)
                due = record.due if soonest <= record.due else self._catching_up(record)
                if soonest <= due < self._limit:
                    self._limit = due

    def sort(self, ready: Sequence[SessionRecord]) -> tuple[list[tuple[float, SessionRecord]], ...]:
        """Into: those that cannot wait, the others, prefills, and those that are ahead while somebody is late. The best of
        each comes first."""
        now, critical = self._now, self._end + HORIZON * self._typical
        late = any(self._late(record) for record in ready if record.due < now)
        required: list[tuple[float, SessionRecord]] = []
        others: list[tuple[float, SessionRecord]] = []
        prefills: list[tuple[float, SessionRecord]] = []
        ahead: list[tuple[float, SessionRecord]] = []
        for record in ready:
            if record.session in self._taken:
                continue
            behind = record.known - record.computed
            if record.due - self._cost(record, behind - 1) < critical:
                required.append((record.due, record))
            elif behind > 1:
                prefills.append((record.due, record))
            elif late and record.due - now > self._allowance(record):
                ahead.append((record.due, record))
            else:
                others.append((-self._value_for_time(record), record))
        for group in (required, others, prefills, ahead):
            # Sorting is stable, and who is ready came in the order of becoming so: first come first among equals.
            group.sort(key=itemgetter(0))
        return required, others, prefills, ahead

    def take_required(self, record: SessionRecord) -> bool:
        """What cannot wait: with its draft if there is time for it, else without."""
        return self.take(record) or (record.offered > 0 and self.take(record, draft=0))

    def take(self, record: SessionRecord, spare: int = 0, draft: int | None = None) -> bool:
        """Take a session, or the chunk of its prefill that fits, if nobody's deadline breaks by it."""
        if record.session in self._taken:
            return False
        behind = record.known - record.computed
        if behind > 1:
            chunk = self._chunk(record, behind)
            return chunk > 0 and self._count(record, chunk, self._budget.prefill(record, chunk))
        tokens = behind + (record.offered if draft is None else draft)
        if self._end + self._cost(record, tokens) > self._limit:
            return False
        return self._count(record, tokens, self._budget.verify(record, spare, draft))

    def take_others(self, records: Sequence[SessionRecord], spare: int) -> list[SessionRecord]:
        """As many of them as fit, `spare` tokens left; returns the rest. `records` come by value for time; where tokens are
        short, by worth."""
        tokens = self._budget.tokens - spare
        if sum(1 + record.offered for record in records) <= tokens:
            return [record for record in records if not self.take(record, spare)]
        own: dict[str, dict[int, SessionRecord]] = {}
        for record in records:
            own.setdefault(record.identity.name, {})[record.session] = record
        for record, count in in_turn(own, tokens, self._now):
            self.take(record, spare, count - 1)
        return [record for record in records if record.session not in self._taken]

    def take_anything(self, records: Sequence[SessionRecord]) -> None:
        """Whatever the deadlines: an idle step helps nobody."""
        self._limit = math.inf
        for record in records:
            self.take(record)

    def _chunk(self, record: SessionRecord, behind: int) -> int:
        """Tokens of prefill for which there is time."""
        if self._limit == math.inf:
            return behind
        left = self._limit - self._end - record.computed * self._cached
        each = self._token + (record.computed + behind) * self._pair
        return min(behind, int(left / each)) if left > 0.0 else 0

    def _count(self, record: SessionRecord, tokens: int, taken: bool) -> bool:
        if taken:
            self._taken.add(record.session)
            self._end += self._cost(record, tokens)
        return taken

    @staticmethod
    def _catching_up(record: SessionRecord) -> float:
        """When the next token of a session that is late should come."""
        pace = record.service.tpot_seconds
        return record.ready_at + pace / CATCHING_UP if pace is not None and record.first_at is not None else record.due

    def _cost(self, record: SessionRecord, tokens: int) -> float:
        """Seconds that so many tokens of a session add to a step."""
        computed = record.computed
        return tokens * (self._token + (computed + tokens) * self._pair) + computed * self._cached

    def _late(self, record: SessionRecord) -> bool:
        """Late, and of a class whose pace this verifier can keep at all."""
        pace = record.service.tpot_seconds
        return pace is None or pace >= self._typical

    def _allowance(self, record: SessionRecord) -> float:
        """How long before it is due a token of a session that stands back may come."""
        pace = record.service.tpot_seconds
        if pace is None or record.first_at is None:
            return math.inf
        return pace + (AHEAD - 1.0) * (self._now - record.first_at)

    def _value_for_time(self, record: SessionRecord) -> float:
        offered = record.offered
        tokens = expected_tokens(record.acceptance.rate, offered) if offered else 1.0
        goodput = record.identity.goodput.at(self._now) or 1.0 / self._typical
        return record.weight * tokens / (goodput * self._cost(record, 1 + offered))
