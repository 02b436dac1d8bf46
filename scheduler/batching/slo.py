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

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from scheduler.batching.pause import worth_waiting
from scheduler.budget import StepBudget
from scheduler.identities import Identity
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
OWN = -1
"""Place of who stands for a token of its own, not for a drafted one."""
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
        required = [record for record in soon if step.cannot_wait(record)]
        step.take_required(required)
        if budget.items and self._asks(step, required):
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


class Turns:
    """Tokens one by one to whom they are worth most: w for a session's own, w a^j for its j-th drafted one. That falls with j,
    so this is exact.

    All sessions of an identity have its goodput, so they come in the order in which they became ready, and those of one worth
    all at once: a heap holds the next session of each identity, and drafted tokens.
    """

    def __init__(
        self,
        decodes: Mapping[str, Mapping[int, SessionRecord]],
        worth: Callable[[SessionRecord], float | None],
        alike: bool = False,
    ) -> None:
        """`worth` of a session's own token; None for who takes no part. `alike`: it is the same for all of an identity and a
        class."""
        self._worth = worth
        self._alike = alike
        self._heap: list[tuple[float, int, int, Iterator[SessionRecord], SessionRecord]] = []
        self._pushed = 0
        for own in decodes.values():
            queue = iter(own.values())
            record, value = self._next(queue)
            if record is not None:
                self._push(value, OWN, queue, record)

    def share_out(self, tokens: int) -> list[tuple[SessionRecord, int]]:
        """Who gets how many of `tokens` tokens; who is given one first comes first."""
        heap = self._heap
        records: list[SessionRecord] = []
        given: list[int] = []
        while tokens > 0 and heap:
            negative, _, place, queue, record = heapq.heappop(heap)
            if place != OWN:
                tokens -= 1
                given[place] += 1
                if given[place] <= record.offered:
                    self._push(-negative * record.acceptance.rate, place, queue, record)
                continue
            following: SessionRecord | None = record
            value = worth = -negative
            while following is not None and value == worth and tokens > 0:
                record = following
                tokens -= 1
                if record.drafted and record.offered:
                    self._push(worth * record.acceptance.rate, len(given), queue, record)
                records.append(record)
                given.append(1)
                following, value = self._next(queue, record, worth)
            if following is not None:
                self._push(value, OWN, queue, following)
        return list(zip(records, given, strict=True))

    def _push(self, worth: float, place: int, queue: Iterator[SessionRecord], record: SessionRecord) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (-worth, self._pushed, place, queue, record))

    def _next(
        self, queue: Iterator[SessionRecord], before: SessionRecord | None = None, value: float = 0.0
    ) -> tuple[SessionRecord | None, float]:
        """The next session of an identity that takes part, and what its own token is worth; that of `before` it is `value`."""
        for record in queue:
            if self._alike and before is not None and record.service is before.service:
                return record, value
            worth = self._worth(record)
            if worth is not None:
                return record, worth
        return None, 0.0


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
        self._taken: set[int] = set()
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
        """The earliest time due that this step can still meet. `soon` are those due first, the next one is due `later`."""
        self._limit = later if self._end + self._token <= later else math.inf
        for record in soon:
            soonest = self._end + self._cost(record, record.behind)
            due = record.due if soonest <= record.due else self._catching_up(record)
            if soonest <= due < self._limit:
                self._limit = due

    def cannot_wait(self, record: SessionRecord) -> bool:
        return record.due - self._cost(record, record.behind - 1) < self._end + HORIZON * self._typical

    def late(self, record: SessionRecord) -> bool:
        """Late, and of a class whose pace this verifier can keep at all."""
        pace = record.service.tpot_seconds
        return record.due < self._now and (pace is None or pace >= self._typical)

    def take_in_turn(self, ready: Ready, pacing: bool) -> None:
        """What need not be in this step, as far as it fits: by worth; prefill; then what prefill has left."""

        shares: dict[Identity, float] = {}
        limited, taken = self.limited, self._taken

        def worth(record: SessionRecord) -> float | None:
            if record.session in taken or (pacing and record.due - self._now > self._allowance(record)):
                return None
            identity = record.identity
            share = shares.get(identity)
            if share is None:
                share = shares[identity] = identity.share.weight / (identity.goodput.at(self._now) or 1.0)
            weight = share * record.service.weight
            # Where time is short, what a token takes of it counts, too.
            return weight / self._cost(record, 1) if limited else weight

        spare = kept_for_prefill(ready.prefills.values(), self._budget.tokens)
        given = Turns(ready.decodes, worth, alike=not (limited or pacing or taken)).share_out(
            self._budget.tokens - spare
        )
        for record, tokens in given if limited else self._decode(given):
            self.take(record, spare, tokens - 1)
        for record in ready.prefills.values():
            if self.full:
                return
            self.take(record)
        for own in ready.decodes.values():
            for record in own.values():
                if self.full:
                    return
                if worth(record) is not None:
                    self.take(record)

    def _decode(self, given: Sequence[tuple[SessionRecord, int]]) -> Sequence[tuple[SessionRecord, int]]:
        """Take all to whom a single token was given at once, where no time is short; returns the others."""
        single = [record for record, tokens in given if tokens == 1]
        if not self._budget.decode(single):
            return given
        self._end = self._now + self._budget.shape.seconds(self._coefficients)
        self._taken.update([record.session for record in single])
        return [(record, tokens) for record, tokens in given if tokens > 1] if len(single) < len(given) else ()

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
            end = self._end + self._cost(record, behind + (record.offered if draft is None else draft))
            if end > self._limit or not self._budget.verify(record, spare, draft):
                return False
        self._taken.add(record.session)
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
