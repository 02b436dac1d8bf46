"""The promise "never slower than not speculating", kept by measurement rather than by a model.

A cost model can be wrong in ways that it cannot see: drafters that share a processor with the verifier, a network that
messages fill up. So now and then, for a short window, what the policy would have chosen is set against what it avoids:
while drafting pays, everybody decodes alone for a moment, or, where that promises about as much as streams, drafts in rounds
only; while it does not pay, everybody drafts for one. Whatever earned more goes on: tokens per second, each weighted as the
policy weights it, so that what serves fairness is not taken back here.

    | as usual | settling, trial | as usual |      a trial is compared with the windows beside it and with no others:
       before                       after          loads and weights drift

Trials become rarer while they confirm what is known, so that they cost about TRIAL_LOSS of the throughput, and are kept
apart by the number of sessions, on which the answer depends most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from scheduler.estimators import Smoothed

SHORTEST_WINDOW = 0.2
"""Seconds."""
INTERVALS_IN_WINDOW = 6.0
"""A window lasts at least so many times what a session waits for a verdict,"""
VERDICTS_IN_WINDOW = 64.0
"""and until there were so many verdicts of all sessions."""
SETTLING, SETTLING_INTERVALS = 0.2, 3.0
"""What is not counted after a change: so much of a window, and so many verdicts of a session. Grants change with verdicts, and
who begins to draft has to get ahead first."""
LONGEST_SETTLING = 2.0
"""Seconds at most until drafters that are far away have got ahead."""
FIRST_TRIAL, COMMON_TRIAL, RAREST_TRIAL = 2.0, 16.0, 400.0
"""Windows between trials: at first, where they lose little, and at most."""
QUIET = 4
"""Windows until the first trial of drafting in a crowd that began without: what sessions wish has to find its level."""
LARGE = 3
"""Of crowds from this size on (sessions, log 2) nobody drafts until it was tried."""
SAME_CROWD = 0.75
"""A crowd stays the same up to so many times log 2 more or fewer sessions."""
CLEAR = 0.1
"""Share of the rate from which on a trial's loss leaves little doubt."""
OBVIOUS = 0.3
"""And from which on it need not be seen from both sides."""
DRIFT_SHARE = 0.5
"""A trial lies between two windows as usual. Where those differ, what it should be compared with is somewhere between them,
and a change of mind needs more than this share of the difference (log)."""
RARER, CLEARLY_RARER = 2.0, 8.0
"""A trial that confirms what is known, narrowly or clearly, makes the next pause so many times longer. What is obvious needs
no confirmation."""
TRIAL_LOSS = 0.001
BEFORE_SHARE = 0.5
"""What the newest window counts in the rate before a trial,"""
SCATTER_SHARE = 0.2
"""and in how far windows as usual lie from that rate (log)."""
BETTER = 1.02
"""A change of mind needs so much."""


class Way(Enum):
    """What sessions may be granted."""

    ALONE = "alone"
    """Nobody drafts."""
    ROUNDS = "rounds"
    """Who drafts does so in ROUND."""
    FREE = "free"
    """As the policy thinks best."""


@dataclass(slots=True)
class Trial:
    """When a way that is not the usual one is tried next."""

    at: float = 0.0
    pause: float = FIRST_TRIAL
    """Windows until the one after that."""
    promising: bool = False
    """The last one earned more, but no more than windows as usual scatter: it may have been luck."""

    def put_off(self, now: float, window: float) -> None:
        self.at = now + self.pause * window


@dataclass(slots=True)
class Crowd:
    """What is known about one size of the crowd (sessions, to powers of two)."""

    best: Way
    """As far as is known."""
    quiet: float
    """Windows yet to be seen before something else is tried for the first time."""
    tried: bool = False
    """What is better is known."""
    trials: dict[Way, Trial] = field(default_factory=dict)

    def trial(self, way: Way) -> Trial:
        return self.trials.setdefault(way, Trial())

    def learn(self, way: Way, ratio: float, now: float, window: float, large: bool = False) -> None:
        """`way` earned so many times what is usual, in a crowd that is `large` or not."""
        self.tried = True
        self.trial(way).promising = False
        loss = abs(1.0 - min(ratio, 1.0 / ratio))
        rarest = min(RAREST_TRIAL, max(COMMON_TRIAL, loss / TRIAL_LOSS))
        growth: float = math.inf if loss > OBVIOUS else CLEARLY_RARER if loss > CLEAR else RARER
        if ratio > BETTER:
            self.best, way = way, self.best
            # However clear: it may have been luck. But a large crowd that should not draft loses most by asking again.
            again = COMMON_TRIAL if large and loss > CLEAR and self.best is Way.ALONE else FIRST_TRIAL
        else:
            again = growth * self.trial(way).pause
        trial = self.trial(way)
        trial.pause = min(rarest, again)
        trial.put_off(now, window)
        if large and way is Way.FREE and self.best is Way.ALONE and loss > CLEAR and Way.ROUNDS not in self.trials:
            # What one way lost is not at once set on another.
            self.trials[Way.ROUNDS] = Trial(now + COMMON_TRIAL * window)

    def trusts(self) -> bool:
        """Nothing was tried yet, and nothing speaks for caution any more: begin with drafting after all."""
        if self.tried or self.quiet > 0 or self.best is not Way.ALONE:
            return False
        self.best, self.quiet = Way.FREE, FIRST_TRIAL
        self.trials.clear()
        return True

    def due(self, ways: Sequence[Way], now: float) -> Way | None:
        """Of the others that make sense, the one whose trial is due longest."""
        if self.quiet > 0:
            return None
        due = [way for way in ways if way is not self.best and self.trial(way).at <= now]
        return min(due, key=lambda way: self.trial(way).at) if due else None


class Governor:
    """Says whether to draft at all. Told of every step."""

    def __init__(self) -> None:
        self.way = Way.FREE
        self._ways: tuple[Way, ...] = (Way.FREE, Way.ALONE)
        """Those that make sense at present."""
        self._crowds: dict[int, Crowd] = {}
        self._size = 0
        """Of the present crowd: about log2(sessions)."""
        self._present = False
        self._far = False
        """Drafters are on other machines than the verifier."""
        self._interval = Smoothed(0.05)
        self._wished = Smoothed(0.05)
        self._settles = Smoothed(0.05)
        """Seconds until drafting is what it is going to be."""
        self._last: float | None = None
        """End of the last step, while sessions are open."""
        self._left_at = 0.0
        self._opened = 0.0
        """When the present way began."""
        self._counted_from = 0.0
        self._earned = self._seconds = 0.0
        self._before = Smoothed(BEFORE_SHARE)
        """Earnings per second in the windows as usual since the crowd or its ways changed."""
        self._scatter = Smoothed(SCATTER_SHARE)
        """How far such windows lie from those before them (log)."""
        self._tried = 0.0
        """Those of a trial that is over but not judged yet,"""
        self._trying = Way.FREE
        """and what was tried."""

    @property
    def drafting(self) -> bool:
        return self.way is not Way.ALONE

    def drafts(self, sessions: int) -> bool:
        """Whether somebody who opens as one of so many may draft: as the present crowd does, or as one of so many would. Of
        those who come at once many are here before a step has ended, and who drafts for a moment reads its prompt for that."""
        size = self._sized(math.log2(max(1, sessions)))
        crowd = self._crowds.get(size)
        if size == self._size and crowd is not None:
            return self.drafting
        return (self._guess(size) if crowd is None else crowd.best) is not Way.ALONE

    @property
    def window(self) -> float:
        """Seconds that drafting has to be seen for."""
        return max(self._shortest(max(self._interval.value, self._wished.value)), self._settles.value)

    def _shortest(self, interval: float) -> float:
        return max(SHORTEST_WINDOW, max(INTERVALS_IN_WINDOW, VERDICTS_IN_WINDOW / (1 << self._size)) * interval)

    @property
    def _length(self) -> float:
        """Of a window of the present way. Decoding alone is soon what it is going to be."""
        return self.window if self.drafting else self._shortest(self._interval.value)

    def verdict(self, seconds: float, wished: float, settles: float) -> None:
        """A session has waited so long for its verdict; would it draft as the policy wants, one would come every `wished`
        seconds, from `settles` seconds after it began."""
        self._interval.observe(seconds)
        self._wished.observe(wished)
        self._settles.observe(min(settles, LONGEST_SETTLING))

    def idle(self) -> None:
        """Nobody is there: the time until somebody comes says nothing."""
        if self._last is not None:
            self._left_at = self._last
        self._last = None
        self._present = False

    def stepped(
        self, earned: float, sessions: int, comparable: bool, now: float, rounds: bool = False, far: bool = False
    ) -> None:
        """A step of `sessions` open sessions has earned so much. `comparable`: it held no prefill, and drafting is what the
        policy wants. `rounds`: instead of streams they would do, as far as it knows. `far`: it wants streams, of drafters that
        are too far away to share the verifier's processors."""
        self._ways = tuple(Way) if rounds or self._rounds_known else (Way.FREE, Way.ALONE)
        size = self._sized(math.log2(max(1, sessions)))
        last, self._last = self._last, now
        if not self._present and size == self._size and size in self._crowds:
            self._resume(now)
            return
        if size != self._size or not self._present:
            self._begin(size, now)
            return
        if last is None or not comparable:
            return
        self._far = far
        self._settle()
        if last >= self._counted_from:
            self._earned += earned
            self._seconds += now - last
        if self._earned > 0.0 and self._seconds > 0.0:
            crowd, rate = self._crowds[self._size], self._earned / self._seconds
            share = (now - self._counted_from) / ((1.0 - SETTLING) * self._length)
            if share >= (self._enough(rate) if self.way is not crowd.best else 1.0):
                self._end(crowd, rate, now)

    def _enough(self, rate: float) -> float:
        """Share of a trial's window that has to be seen. Of many sessions that lose much a verdict each shows it."""
        if not self._obvious(rate):
            return 1.0
        return 1.0 / INTERVALS_IN_WINDOW if self._size >= LARGE and rate < self._before.value else 0.5

    def _obvious(self, rate: float) -> bool:
        """Whether a trial's rate is so far from that before it that nothing more need be seen. A few sessions that earn much
        more may just have come to an easy passage of their texts."""
        apart = math.log(rate / self._before.value)
        return -apart > OBVIOUS or (apart > OBVIOUS and self._size >= LARGE)

    def _sized(self, exact: float) -> int:
        """The present crowd while it fits: sessions come and go, and what is being tried should not end with each of them. One
        of which nothing is known yet may still be gathering."""
        same = SAME_CROWD if self._before.value else 0.5
        return self._size if self._present and abs(exact - self._size) <= same else round(exact)

    def _begin(self, size: int, now: float) -> None:
        """Another crowd: what it is known to do best, or else what others suggest."""
        before = self._crowds.get(self._size)
        if before is not None and self.way is not before.best:
            before.trial(self.way).put_off(now, self.window)  # cut short; not again at once
        self._size, self._present = size, True
        if size not in self._crowds:
            best = self._guess(size)
            self._crowds[size] = Crowd(best, QUIET if best is Way.ALONE else FIRST_TRIAL, trials=self._refused(size))
        self._before, self._tried = Smoothed(BEFORE_SHARE), 0.0
        self._open(self._crowds[size].best, now)

    def _resume(self, now: float) -> None:
        """The same crowd is back, and goes on where it was: who asks for little at a time would never see a window's end."""
        gap = now - self._left_at
        self._present = True
        self._opened += gap
        self._counted_from += gap
        crowd = self._crowds[self._size]
        for trial in crowd.trials.values():
            trial.at += gap

    @property
    def _rounds_known(self) -> bool:
        """The crowd drafts in rounds only: whether streams are worth it must still be asked."""
        crowd = self._crowds.get(self._size)
        return crowd is not None and crowd.best is Way.ROUNDS

    def _refused(self, size: int) -> dict[Way, Trial]:
        """The trials of the next smaller crowd that was seen to do better alone: what was found there holds for more sessions,
        too, and a crowd that grows should not find it anew at each size."""
        for other in range(size - 1, -1, -1):
            crowd = self._crowds.get(other)
            if crowd is not None and crowd.tried:
                return {way: replace(one) for way, one in crowd.trials.items()} if crowd.best is Way.ALONE else {}
        return {}

    def _guess(self, size: int) -> Way:
        """Whether a crowd of unknown habits drafts, and how: the more there are, the less it pays. So does one half as large
        where that was seen to pay. Else a few users have the verifier to themselves, and many keep it busy alone and lose
        more by a wrong beginning than by a late one."""
        for other, crowd in self._crowds.items():
            if other > size and crowd.best is not Way.ALONE:
                return crowd.best
        if any(crowd.best is Way.ALONE for other, crowd in self._crowds.items() if other < size and crowd.tried):
            return Way.ALONE
        smaller = self._crowds.get(size - 1)
        if smaller is not None and smaller.tried:
            return smaller.best
        return Way.FREE if size < LARGE else Way.ALONE

    def _end(self, crowd: Crowd, rate: float, now: float) -> None:
        """A window has ended."""
        if self.way is not crowd.best:
            self._tried, self._trying = rate, self.way
            if self._obvious(rate):
                self._judge(crowd, self._before.value, now)
        else:
            if self._tried:
                self._compare(crowd, rate, now)
            if self.way is crowd.best:  # still
                if self._before.value:
                    self._scatter.observe(abs(math.log(rate / self._before.value)))
                self._before.observe(rate)
            crowd.quiet -= 1
            if self._far and crowd.trusts():
                self._tried, self._trying = self._before.value, Way.ALONE
                self._before = Smoothed(BEFORE_SHARE)
        trial = crowd.due(self._ways, now) if self._before.value > 0.0 and not self._tried else None
        self._open(trial or crowd.best, now)

    def _compare(self, crowd: Crowd, after: float, now: float) -> None:
        """Judge a trial by the windows on both sides of it. What promises more, but no more than loads drift, is tried
        again; so is drafting, once, that promises no more than windows scatter."""
        before, trial = self._before.value, crowd.trial(self._trying)
        if not before:  # it was alone until it was trusted, and streams may take longer to get ahead
            if math.log(self._tried / after) > OBVIOUS:
                usual, self._tried, self._trying, crowd.best = self._tried, after, Way.FREE, Way.ALONE
                self._judge(crowd, usual, now)
            self._tried = 0.0
            return
        usual = math.sqrt(before * after)
        better = math.log(self._tried / usual)
        drifts = better < DRIFT_SHARE * abs(math.log(after / before))
        scatters = crowd.best is Way.ALONE and better < min(self._scatter.value, CLEAR) and not trial.promising
        if better > math.log(BETTER) and (drifts or scatters):
            trial.promising = True
            trial.put_off(now, self.window)
            self._tried = 0.0
        else:
            self._judge(crowd, usual, now)

    def _judge(self, crowd: Crowd, usual: float, now: float) -> None:
        was = crowd.best
        crowd.learn(self._trying, self._tried / usual, now, self.window, self._size >= LARGE)
        self._tried = 0.0
        if crowd.best is not was:
            self._before = Smoothed(BEFORE_SHARE)

    def _open(self, way: Way, now: float) -> None:
        """Begin a window. One that only goes on as the last did has nothing to settle."""
        if way is not self.way:
            self._opened = now
        self.way = way
        self._counted_from = now
        self._earned = self._seconds = 0.0
        self._settle()

    def _settle(self) -> None:
        """Count from when the present way is what it is going to be. How long that takes shows once it has begun: what was
        counted too early is dropped."""
        settling = max(SETTLING * self._length, SETTLING_INTERVALS * self._interval.value)
        if self.drafting:
            settling = max(settling, self._settles.value)
        settled = self._opened + settling
        if settled > self._counted_from:
            self._counted_from = settled
            self._earned = self._seconds = 0.0
