"""`fair-goodput`, or `fair-goodput:PHI`: one price of a GPU-second, and for each session the mode and length that earn most.

A session that commits m tokens and uses g GPU-seconds every R seconds is worth (w m - price * g) / R. Its weight w = X^-phi is
the gradient of an alpha-fair utility of its identity's goodput X in tokens per second: phi = 1 is proportional fairness, 0 is
throughput. Steps take T = c0 / (1 - U) with U = sum g / R, so a GPU-second that one session uses slows everybody; that gives

    price = kappa T A / (1 + kappa T B),  kappa = 1 / (1 - U),  A = sum w m theta / R^2,  B = sum g theta / R^2

with theta = 1 for LOCAL and STREAM and 1 + W / T for ROUND (W: the wait for a step). Given the price, sessions separate. With
everybody in LOCAL this is SmartSpec's rule; with w = 1 / X and equal rounds GoodSpeed's. Derivation and constants:
docs/algorithms.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scheduler.estimators import expected_tokens
from scheduler.types import ItemOutcome, Outcome, SessionRecord
from scheduler.view import View
from specfleet.core.errors import ConfigurationError
from specfleet.core.types import LOCAL, Grant, Mode

LONGEST_STREAM = 16
LONGEST_ROUND = 16
PRICE_SHARE = 0.1
"""What a step's new price counts against the old one: prices that jump make step times oscillate."""
BETTER = 1.05
"""A change to or from ROUND must promise so much, twice in a row."""
FASTEST_STREAM = 0.95
"""STREAM needs drafting faster than this share of a step."""
BUSIEST = 0.95
"""The load U is never believed to be higher: kappa would explode."""
UNKNOWN_DRAFT_SECONDS = 0.002
UNKNOWN_ROUND_TRIP = 0.002


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to serve a session: m tokens and g GPU-seconds every R seconds."""

    grant: Grant
    tokens: float
    gpu_seconds: float
    seconds: float
    theta: float = 1.0

    def value(self, weight: float, price: float) -> float:
        """(w m - price g) / R"""
        return (weight * self.tokens - price * self.gpu_seconds) / self.seconds


@dataclass(slots=True)
class Holding:
    """What a session counts for in A, B and U, and how often ROUND's boundary was asked to be crossed."""

    offer: Offer
    weight: float
    crossings: int = 0


class Costs:
    """The step-time model as the rule needs it: c0 a step, c1 a token, c3 a token of context."""

    def __init__(self, view: View) -> None:
        self.step_fixed, self.token, self.context, _ = map(float, view.step_time.coefficients)
        self.step = view.step_seconds.value or self.step_fixed + self.token
        self.wait = min(view.wait_seconds.value, self.step)


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
        self._costs = Costs(view)
        self.price = 0.0
        """Of a GPU-second, in weighted tokens."""

    def opened(self, record: SessionRecord, now: float) -> Grant:
        return self._choose(record)

    def stepped(self, outcome: Outcome, now: float) -> None:
        self._costs = Costs(self._view)
        load = min(BUSIEST, max(0.0, self._load))
        kappa_step = self._costs.step / (1.0 - load)
        price = kappa_step * self._earning / (1.0 + kappa_step * self._using)
        self.price += PRICE_SHARE * (price - self.price)

    def decided(self, record: SessionRecord, outcome: ItemOutcome, now: float) -> Grant:
        return self._choose(record)

    def closed(self, record: SessionRecord) -> None:
        held = self._held.pop(record.session, None)
        if held is not None:
            self._count(held, -1.0)
        if not self._held:
            # Sums of differences drift; nobody here is the moment to begin at zero again.
            self._earning = self._using = self._load = 0.0

    def _choose(self, record: SessionRecord) -> Grant:
        weight = self._weight(record)
        offers = self._offers(record, weight)
        best = max(offers, key=lambda offer: offer.value(weight, self.price))
        held = self._held.get(record.session)
        crossings = 0
        if held is not None:
            best, crossings = self._steady(held, best, offers, weight)
            self._count(held, -1.0)
        fresh = Holding(best, weight, crossings)
        self._held[record.session] = fresh
        self._count(fresh, 1.0)
        return best.grant

    def _steady(self, held: Holding, best: Offer, offers: list[Offer], weight: float) -> tuple[Offer, int]:
        """Stay on this side of ROUND unless the other one is clearly better, twice in a row."""
        was, is_ = held.offer.grant.mode is Mode.ROUND, best.grant.mode is Mode.ROUND
        if was == is_:
            return best, 0
        same = [offer for offer in offers if (offer.grant.mode is Mode.ROUND) == was]
        if not same:
            return best, 0
        stay = max(same, key=lambda offer: offer.value(weight, self.price))
        value, other = stay.value(weight, self.price), best.value(weight, self.price)
        if other > value + (BETTER - 1.0) * abs(value):
            return (best, 0) if held.crossings else (stay, 1)
        return stay, 0

    def _weight(self, record: SessionRecord) -> float:
        goodput = record.identity.goodput.value or 1.0 / self._costs.step
        return float(goodput**-self._phi)

    def _offers(self, record: SessionRecord, weight: float) -> list[Offer]:
        costs = self._costs
        local = Offer(LOCAL, 1.0, costs.token + costs.context * record.known, costs.step)
        if not record.can_draft:
            return [local]
        draft = record.draft_seconds.value or UNKNOWN_DRAFT_SECONDS
        trip = record.round_trip.value or UNKNOWN_ROUND_TRIP
        offers = [local, self._round(record, weight, draft, trip)]
        stream = self._stream(record, weight, draft, trip)
        return [*offers, stream] if stream is not None else offers

    def _round(self, record: SessionRecord, weight: float, draft: float, trip: float) -> Offer:
        """The best length: value rises, then falls with it."""
        costs, rate = self._costs, record.acceptance.rate
        base = costs.token + costs.context * record.known
        theta = 1.0 + costs.wait / costs.step
        best = None
        for length in range(1, LONGEST_ROUND + 1):
            offer = Offer(
                Grant(Mode.ROUND, length),
                expected_tokens(rate, length),
                base + costs.token * length,
                length * draft + trip + costs.wait + costs.step,
                theta,
            )
            if best is not None and offer.value(weight, self.price) <= best.value(weight, self.price):
                break
            best = offer
        assert best is not None
        return best

    def _stream(self, record: SessionRecord, weight: float, draft: float, trip: float) -> Offer | None:
        """Draft-ahead: x tokens per second, u drafted tokens verified per step."""
        costs, rate = self._costs, record.acceptance.rate
        step = costs.step
        if draft >= FASTEST_STREAM * step:
            return None
        longest = LONGEST_STREAM
        floor = self.price * costs.token / weight
        if floor >= rate:
            return None
        if floor > 0.0:
            longest = min(longest, int(math.log(floor) / math.log(rate)))
        # The chance that the branch survives until the drafter has caught up with the stream again.
        alive = rate ** ((trip + draft + step) / (step - draft))
        each = max(draft, step / (longest + 1))
        speed = 1.0 / (step * (1.0 - alive) + each * alive)
        verified = each * alive * speed * min(longest, step / draft)
        used = costs.token * (1.0 + verified) + costs.context * record.known
        return Offer(Grant(Mode.STREAM, longest), speed * step, used, step)

    def _count(self, held: Holding, sign: float) -> None:
        """Add or take away a session's terms of A, B and U."""
        offer = held.offer
        share = sign * offer.theta / offer.seconds**2
        self._earning += share * held.weight * offer.tokens
        self._using += share * offer.gpu_seconds
        self._load += sign * offer.gpu_seconds / offer.seconds


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
