"""`fair-goodput`, or `fair-goodput:PHI`: one price of a GPU-second, and for each session the mode and length that earn most.

A session that commits m tokens and uses g GPU-seconds every R seconds is worth (w m - price * g) / R. Its weight w = X^-phi is
the gradient of an alpha-fair utility of its identity's goodput X in tokens per second: phi = 1 is proportional fairness, 0 is
throughput. Steps take T = c0 / (1 - U) with U = sum g / R, so a GPU-second that one session uses slows everybody; that gives

    price = kappa T A / (1 + kappa T B),  kappa = 1 / (1 - U),  A = sum w m theta / R^2,  B = sum g theta / R^2

with theta = 1 for LOCAL and STREAM and 1 + W / T for ROUND (W: the wait for a step). Given the price, sessions separate. With
everybody in LOCAL this is SmartSpec's rule; with w = 1 / X and equal rounds GoodSpeed's. Derivation and constants:
docs/algorithms.md.

Sessions of a class with a pace (service classes) are served first of all in the mode that keeps it at the least GPU time per
token; where none does, by the same rule with a weight that grows as they fall behind.

That is a model. Whether drafting pays at all is also measured (governor.py), and the measurement has the last word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from scheduler.batching.pause import NEAR
from scheduler.speculation.governor import Governor, Way
from scheduler.types import ROUND, STREAM, ItemOutcome, Outcome, SessionRecord
from scheduler.view import View
from specfleet.core.errors import ConfigurationError
from specfleet.core.types import LOCAL, Grant

LONGEST_STREAM = 16
LONGEST_ROUND = 16
LONGEST_PACED = 8
"""Longest round of a session that has a pace to keep: long ones come in bursts."""
PRICE_SHARE = 0.1
"""What a step's new price counts against the old one: prices that jump make step times oscillate."""
AT_ONCE, BUSY_SHARE = 0.25, 0.05
"""A step that begins within this share of its duration after the last one follows at once; what one step counts."""
DECISIONS, DECIDING, DECISION_SECONDS = 16, 0.01, 15e-6
"""Of the verdicts of one step so many are decided anew, or as many as take this share of it, and the others in their turn:
what is believed of a session changes over dozens of tokens, and a step of hundreds of sessions should not wait. The larger
number holds while the price has moved: nobody should go on for many long steps as an idle verifier suggested once."""
MOVED = 1.5
"""A price that is so many times what it was, or less, is another one: everybody's decision is stale."""
FAR = 0.005
"""Seconds to a drafter and back from which on it is certainly on another machine."""
CLOSE = 0.75
"""A round that promises so much of what a stream does might really be the better of them: drafters that work all the time can
cost a verifier beside them more than they hide."""
BETTER = 1.05
"""A change to or from ROUND must promise so much, twice in a row."""
FASTEST_STREAM = 0.95
"""STREAM needs drafting faster than this share of a step."""
HOPELESS = 1e-6
"""Nor is it worth a thought where the chance of ever catching up is smaller."""
BUSIEST = 0.95
"""The load U is never believed to be higher: kappa would explode."""
UNKNOWN_DRAFT_SECONDS = 0.002
UNKNOWN_ROUND_TRIP = 0.002
SPARE_PACE, CATCHING_UP = 1.03, 1.15
"""Times its pace that a session is to be given: on time, and when it is behind."""
HASTE = 4.0
"""The weight of who cannot be given its pace grows with this power of the shortfall, up to this shortfall."""

ROUNDS = tuple(Grant(ROUND, length) for length in range(LONGEST_ROUND + 1))
STREAMS = tuple(Grant(STREAM, length) for length in range(LONGEST_STREAM + 1))
ROUNDS_ONLY = Way.ROUNDS
"""For what is asked of every decision, as ROUND and STREAM are."""


@dataclass(slots=True)
class Offer:
    """One way to serve a session: m tokens and g GPU-seconds every R seconds."""

    grant: Grant
    tokens: float
    gpu_seconds: float
    seconds: float
    theta: float = 1.0
    settles: float = 0.0
    """Seconds until it does so, once it is begun."""


def _values(offers: Sequence[Offer], weight: float, price: float) -> list[float]:
    """(w m - price g) / R of each."""
    return [(weight * one.tokens - price * one.gpu_seconds) / one.seconds for one in offers]


@dataclass(slots=True)
class Holding:
    """What a session counts for in A, B and U, what it would do if drafting were allowed, and how often ROUND's boundary was
    asked to be crossed."""

    offer: Offer
    wished: Offer
    earning: float
    using: float
    load: float
    """Its terms of A, B and U."""
    share: float
    """What it counts for in the mean that the governor is told: w, divided by the sessions of its identity."""
    paced: bool
    """It has a pace to keep."""
    rounds: bool = False
    """Instead of the stream that it would be, a round might do."""
    far: bool = False
    """It would be a stream, and its drafter is FAR."""
    crossings: int = 0


class Costs:
    """The step-time model as the rule needs it: c0 a step, c1 a token, c3 a token of context."""

    __slots__ = ("context", "step", "step_fixed", "token")

    def __init__(self, view: View) -> None:
        self.step_fixed, self.token, self.context, _ = view.step_time.coefficients
        self.step = view.step_seconds.value or self.step_fixed + self.token


class FairGoodput:
    def __init__(self, view: View, phi: float) -> None:
        self._view = view
        self._phi = phi
        self._held: dict[int, Holding] = {}
        self._earning = 0.0
        """A"""
        self._using = 0.0
        """B"""
        self._load = 0.0
        """U"""
        self._shares = 0.0
        self._drafting = 0
        """Sessions whose best way is to draft, whether they may or not,"""
        self._rounds = 0
        """those of them for which rounds are worth a try instead of streams,"""
        self._far = 0
        """and streams from far away."""
        self._steps = 0
        self._turns = 1
        """Of so many verdicts one is decided anew; the others go on as they were."""
        self._stale = 0
        """Decisions left to make at the pace of a price that has moved,"""
        self._priced = 0.0
        """and the price when they were counted."""
        self._costs = Costs(view)
        self._busy = 0.0
        """Share of steps that began when the one before had ended: whose draft is not there by then has missed it."""
        self._ended_at = -math.inf
        self._governor = Governor()
        self._may_draft = self._governor.drafting
        """Its word until the next step."""
        self.price = 0.0
        """Of a GPU-second, in weighted tokens."""

    def opened(self, record: SessionRecord, now: float) -> Grant:
        self._may_draft = self._governor.drafts(len(self._view.records))
        return self._granted(self._choose(record, now))

    def stepped(self, outcome: Outcome, now: float, worth: float | None = None) -> None:
        self._costs = Costs(self._view)
        at_once = now - outcome.seconds - self._ended_at < AT_ONCE * outcome.seconds
        self._busy += BUSY_SHARE * (at_once - self._busy)
        self._ended_at = now
        load = min(BUSIEST, max(0.0, self._load))
        kappa_step = self._costs.step / (1.0 - load)
        price = kappa_step * self._earning / (1.0 + kappa_step * self._using)
        self._steps += 1
        self.price += max(PRICE_SHARE, 1.0 / self._steps) * (price - self.price)
        self._turns = max(1, -(-len(outcome.items) // self._decisions(outcome)))
        self._govern(worth, now)

    def _decisions(self, outcome: Outcome) -> int:
        """How many of the step's verdicts to decide anew."""
        if not self._priced <= self.price * MOVED <= self._priced * MOVED * MOVED:
            self._priced, self._stale = self.price, len(self._view.records)
        if self._stale <= 0:
            return DECISIONS
        decisions = max(DECISIONS, int(DECIDING / DECISION_SECONDS * outcome.seconds))
        self._stale -= min(decisions, len(outcome.items))
        return decisions

    def _govern(self, worth: float | None, now: float) -> None:
        """Tell the governor what the step earned: tokens of an identity, in the mean over all by their weights. Weights drift
        as goodput does, which such a mean does not follow. Whoever may draft in rounds only, and would rather not, might still
        rather stream."""
        wanted = self._drafting > 0 or self._governor.way is Way.ROUNDS
        comparable = bool(worth) and wanted and self._shares > 0.0
        earned = worth / self._shares if worth and comparable else 0.0
        sessions = len(self._view.records)
        rounds, far = self._rounds > 0.5 * self._drafting, self._far > 0.5 * sessions
        self._governor.stepped(earned, sessions, comparable, now, rounds=rounds, far=far)
        self._may_draft = self._governor.drafting

    def decided(self, record: SessionRecord, outcome: ItemOutcome, now: float) -> Grant:
        return self._decided(record, now)

    def _decided(self, record: SessionRecord, now: float) -> Grant:
        held = self._choose(record, now)
        interval = record.interval
        if interval:
            self._governor.verdict(interval, held.wished.seconds, held.wished.settles)
        return self._granted(held)

    def decided_all(self, records: Sequence[SessionRecord], outcome: Outcome, now: float) -> list[Grant]:
        """Those whose turn it is are decided anew, the others go on as they were, as far as the governor lets them."""
        if self._may_draft:
            grants = [record.wish for record in records]
        else:
            grants = [record.wish if record.promised and self._paces(record) else LOCAL for record in records]
        turns, turn = self._turns, -self._steps % self._turns
        for place, record in [(place, one) for place, one in enumerate(records) if one.session % turns == turn]:
            if record.can_draft:
                grants[place] = self._decided(record, now)
        return grants

    def _paces(self, record: SessionRecord) -> bool:
        """Whether it had a pace to keep when it was decided."""
        held = self._held.get(record.session)
        return held is not None and held.paced

    def closed(self, record: SessionRecord) -> None:
        held = self._held.pop(record.session, None)
        if held is not None:
            self._count(held, -1.0)
        if not self._held:
            # Sums of differences drift; nobody here is the moment to begin at zero again.
            self._earning = self._using = self._load = self._shares = 0.0
            self._drafting = self._rounds = self._far = 0
            self._governor.idle()

    def _choose(self, record: SessionRecord, now: float) -> Holding:
        session, identity, weight = record.session, record.identity, self._weight(record)
        held = self._held.get(session)
        paced = record.service.tpot_seconds is not None and record.first_at is not None
        if paced:
            wished = offer = self._paced(record, now)
            crossings, rounds = 0, False
        else:
            offers = self._offers(record, weight)
            wished, crossings = self._best(offers, weight, held)
            rounds = wished.grant.mode is STREAM and _rounds_would_do(offers[1:-1], wished)
            offer = wished if self._may_draft else offers[0]
        if held is not None:
            self._count(held, -1.0)
        seconds, gpu = offer.seconds, offer.gpu_seconds
        part = offer.theta / (seconds * seconds)
        wish = wished.grant
        self._held[session] = fresh = Holding(
            offer,
            wished,
            part * weight * offer.tokens,
            part * gpu,
            gpu / seconds,
            weight / (identity.sessions or 1),
            paced,
            rounds,
            wish.mode is STREAM and record.round_trip.value > FAR,
            crossings,
        )
        record.worth, record.wish = weight, wish
        self._count(fresh, 1.0)
        return fresh

    def _granted(self, held: Holding) -> Grant:
        """What a class promises is not for trials; for everybody else the governor has the last word."""
        return held.wished.grant if held.paced or self._may_draft else LOCAL

    def _best(self, offers: Sequence[Offer], weight: float, held: Holding | None) -> tuple[Offer, int]:
        """The offer of most value; but on the same side of ROUND as before unless the other one is clearly better, twice in a
        row. And how often in a row it was."""
        values = _values(offers, weight, self.price)
        most = max(values)
        best = offers[values.index(most)]
        if held is None:
            return best, 0
        was = held.wished.grant.mode is ROUND
        if was == (best.grant.mode is ROUND):
            return best, 0
        same = [value for offer, value in zip(offers, values, strict=True) if (offer.grant.mode is ROUND) == was]
        if not same:
            return best, 0
        value = max(same)
        stay = offers[values.index(value)]
        if most > value + (BETTER - 1.0) * abs(value):
            return (best, 0) if held.crossings else (stay, 1)
        return stay, 0

    def _paced(self, record: SessionRecord, now: float) -> Offer:
        """The least GPU time per token among the ways that keep the pace; where there is none, what is worth most with a
        weight that grows with the shortfall."""
        assert record.service.tpot_seconds is not None and record.first_at is not None
        pace = 1.0 / record.service.tpot_seconds
        need = pace * (CATCHING_UP if record.due < now else SPARE_PACE)
        passed = now - record.first_at
        speed = record.emitted / passed if passed > 0.0 else pace
        weight = min(pace / speed, HASTE) ** HASTE / pace * record.weight
        offers = self._offers(record, weight, LONGEST_PACED)
        if record.can_draft:
            offers.extend(self._lengths(record))
        enough = [offer for offer in offers if offer.tokens >= need * offer.seconds]
        if enough:
            return min(enough, key=lambda offer: offer.gpu_seconds / offer.tokens)
        values = _values(offers, weight, self.price)
        return offers[values.index(max(values))]

    def _weight(self, record: SessionRecord) -> float:
        identity = record.identity
        goodput = identity.goodput.value or 1.0 / self._costs.step
        weight = identity.share.weight * record.service.weight  # as `record.weight`, without the call
        return weight / goodput if self._phi == 1.0 else float(weight * goodput**-self._phi)

    def _offers(self, record: SessionRecord, weight: float, longest: int = LONGEST_ROUND) -> list[Offer]:
        """What it can be granted: LOCAL first, a stream last."""
        costs = self._costs
        own = costs.token + costs.context * record.known
        local = Offer(LOCAL, 1.0, own, costs.step)
        if not record.can_draft:
            return [local]
        draft = record.draft_seconds.value or UNKNOWN_DRAFT_SECONDS
        trip = record.round_trip.value or UNKNOWN_ROUND_TRIP
        rate = record.acceptance.rate
        best = self._round(weight, rate, own, draft, trip, longest)
        if self._governor.way is ROUNDS_ONLY and record.service.tpot_seconds is None:
            return [local, best]
        stream = self._stream(weight, rate, own, draft, trip)
        if stream is None:
            return [local, best]
        if not record.round_trip.value:
            worth = _values((local, stream), weight, self.price)
            if worth[1] > worth[0]:
                return [local, stream]  # a round would wait for its draft, and who knows how far away that is
        return [local, best, stream]

    def _round(self, weight: float, rate: float, own: float, draft: float, trip: float, longest: int) -> Offer:
        """The best length, of who takes `own` GPU-seconds without a draft. Where others keep the verifier busy, a draft waits
        for the end of the step it has missed, so that rounds last whole steps; then value rises and falls with the length more
        than once."""
        costs, price = self._costs, self.price
        step, token = costs.step, costs.token
        busy = self._busy if len(self._view.records) > 1 else 0.0
        beyond, held = rate / (1.0 - rate), NEAR * costs.step_fixed
        gpu, away = own, trip
        tokens = survival = 1.0
        best, found = -math.inf, (1, tokens, gpu, trip + step, 0.0)
        for length in range(1, longest + 1):
            survival *= rate
            tokens += survival
            gpu += token
            away += draft
            wait = busy * (ceil(away / step) * step - away) if busy and away > held else 0.0
            seconds = away + wait + step
            value = (weight * tokens - price * gpu) / seconds
            if value > best:
                best, found = value, (length, tokens, gpu, seconds, wait)
            elif weight * (tokens + survival * beyond) - price * gpu <= best * seconds:
                break  # all further tokens together would not do
        length, tokens, gpu, seconds, wait = found
        return Offer(ROUNDS[length], tokens, gpu, seconds, 1.0 + wait / step, seconds)

    def _lengths(self, record: SessionRecord) -> Iterator[Offer]:
        """Rounds of all lengths that a session with a pace may have: which takes the least GPU time per token is not which is
        worth most a second."""
        costs, rate, step = self._costs, record.acceptance.rate, self._costs.step
        draft = record.draft_seconds.value or UNKNOWN_DRAFT_SECONDS
        away = record.round_trip.value or UNKNOWN_ROUND_TRIP
        busy = self._busy if len(self._view.records) > 1 else 0.0
        gpu = costs.token + costs.context * record.known
        tokens = survival = 1.0
        for length in range(1, LONGEST_PACED + 1):
            survival *= rate
            tokens += survival
            gpu += costs.token
            away += draft
            wait = busy * (ceil(away / step) * step - away) if away > NEAR * costs.step_fixed else 0.0
            seconds = away + wait + step
            yield Offer(ROUNDS[length], tokens, gpu, seconds, 1.0 + wait / step, seconds)

    def _stream(self, weight: float, rate: float, own: float, draft: float, trip: float) -> Offer | None:
        """Draft-ahead, with the best number of drafted tokens to verify in a step. None where it never gets ahead.

        A branch that was contradicted begins again behind the stream and gains on it; it has caught up once so many tokens in
        a row were guessed right, and then n drafted tokens are verified in each step until one is wrong. Of these two times
        it is made: `behind` steps with one token each, `ahead` steps with mu(n).
        """
        step, token, price, refused = self._costs.step, self._costs.token, self.price, 1.0 - rate
        if draft >= FASTEST_STREAM * step:
            return None
        catches_up = math.pow(rate, (trip + step) / (step - draft))
        if catches_up < HOPELESS:
            return None
        behind = (1.0 / catches_up - 1.0) / refused
        reach = step / draft - 1.0
        best, found, survives = -math.inf, (1, 1.0, own), 1.0
        for length in range(1, LONGEST_STREAM + 1):
            verified = min(float(length), reach)
            survives = survives * rate if length <= reach else math.pow(rate, reach)
            share = 1.0 / (1.0 + behind * (1.0 - survives))  # of steps that are ahead
            tokens = 1.0 - share + share * (1.0 - survives * rate) / refused
            gpu = own + token * verified * share
            value = weight * tokens - price * gpu
            if value <= best:
                break
            best, found = value, (length, tokens, gpu)
            if length >= reach:
                break
        length, tokens, gpu = found
        return Offer(STREAMS[length], tokens, gpu, step, 1.0, trip + behind * step)

    def _count(self, held: Holding, sign: float) -> None:
        """Add or take away a session's terms of A, B and U, and what else is counted of all."""
        self._earning += sign * held.earning
        self._using += sign * held.using
        self._load += sign * held.load
        self._shares += sign * held.share
        if held.wished.grant is not LOCAL:
            self._drafting += int(sign)
            self._rounds += int(sign) * held.rounds
            self._far += int(sign) * held.far


def _rounds_would_do(rounds: Sequence[Offer], wished: Offer) -> bool:
    """One of these promises about what the stream that is wished does."""
    return any(one.tokens / one.seconds >= CLOSE * wished.tokens / wished.seconds for one in rounds)


def build(argument: str, view: View, rng: np.random.Generator) -> FairGoodput:
    try:
        phi = float(argument or 1.0)
    except ValueError:
        phi = math.nan
    if not 0.0 <= phi <= 4.0:
        raise ConfigurationError(
            f"fair-goodput:{argument} is not understood; write fair-goodput:PHI with PHI from 0 to 4"
        )
    return FairGoodput(view, phi)
