"""Speculation policies against brute force and against their sources."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from scheduler import ItemOutcome, Outcome, SessionRecord, speculation
from scheduler.estimators import expected_tokens
from scheduler.speculation import fair_goodput, smartspec
from scheduler.speculation.fair_goodput import FairGoodput
from scheduler.speculation.goodspeed import share_out
from scheduler.step_profile import StepProfile
from scheduler.step_time import StepTimeModel
from scheduler.view import View
from specfleet.core.errors import ConfigurationError
from specfleet.core.types import LOCAL, Grant, Mode, ServiceClass
from support.estimates import known_acceptance

Vector = npt.NDArray[np.float64]

RNG = np.random.default_rng(0)
WORLDS = 300 if os.environ.get("SPECFLEET_EXAMPLES") else 20
"""Random worlds that are solved by brute force; `make properties` asks for all."""


def record(session: int, rate: float, draft: float = 0.002, trip: float = 0.01, known: int = 200) -> SessionRecord:
    """A session that decodes, with estimates as given."""
    one = SessionRecord(session, known, known - 1, True, 0.0, 0.0)
    one.acceptance = known_acceptance(rate)
    one.draft_seconds.observe(draft)
    one.round_trip.observe(trip)
    return one


def view(*records: SessionRecord, profile: StepProfile | None = None) -> View:
    profile = profile or StepProfile(0.02, 2e-4, 1e-7)
    return View(StepTimeModel(profile), {one.session: one for one in records})


# --- goodspeed ------------------------------------------------------------------------------------------------------


def test_goodspeed_shares_out_exactly() -> None:
    """On 300 random instances the heap finds the maximum of sum w * mu(S) over all splits of the budget."""
    for _ in range(300):
        count, budget = int(RNG.integers(1, 5)), int(RNG.integers(0, 9))
        clients = {n: (float(RNG.uniform(0.1, 5)), float(RNG.uniform(0.05, 0.97))) for n in range(count)}

        def worth(lengths: Sequence[int], clients: dict[int, tuple[float, float]] = clients) -> float:
            return sum(w * expected_tokens(a, k) for (w, a), k in zip(clients.values(), lengths, strict=True))

        splits = (split for split in itertools.product(range(budget + 1), repeat=count) if sum(split) <= budget)
        best = max(map(worth, splits))
        assert best == pytest.approx(worth(list(share_out(budget, clients).values())))


def test_goodspeed_gives_more_to_whom_less_was_given() -> None:
    """Of two clients with equal acceptance the one with fewer tokens per round gets the longer draft."""
    one = speculation.build("goodspeed:6", view(), RNG)
    poor, rich = record(1, 0.7), record(2, 0.7)
    one.opened(poor, 0.0)
    one.opened(rich, 0.0)
    items = (ItemOutcome(1, 1, 4, 0, 1, 0), ItemOutcome(2, 1, 4, 4, 5, 0))
    one.stepped(Outcome(items, 0.02), 1.0)
    lengths = [one.decided(client, items[0], 1.0).length for client in (poor, rich)]
    assert 6 == sum(lengths)
    one.closed(poor)
    one.stepped(Outcome((), 0.02), 2.0)
    assert 6 == one.decided(rich, items[1], 2.0).length


# --- smartspec ------------------------------------------------------------------------------------------------------


def test_smartspec_finds_the_best_length() -> None:
    """On 300 random loads the walk upwards ends at the length of largest goodput, none counting 1.1-fold."""
    for _ in range(300):
        profile = StepProfile(
            float(RNG.uniform(0.002, 0.05)), float(RNG.uniform(1e-5, 2e-3)), float(RNG.uniform(0, 1e-6))
        )
        sessions = [
            record(n, float(RNG.uniform(0.05, 0.97)), float(RNG.uniform(1e-4, 1e-2)), known=int(RNG.integers(10, 2000)))
            for n in range(int(RNG.integers(1, 40)))
        ]
        one = view(*sessions, profile=profile)
        values = [smartspec.goodput(one, sessions, k) * (1.1 if k == 0 else 1.0) for k in range(33)]
        assert max(values) == pytest.approx(values[smartspec.best_length(one)])


def test_smartspec_turns_speculation_off_under_load() -> None:
    """With cheap tokens and one session it speculates, with dear tokens and many it does not."""
    alone = view(record(1, 0.8))
    assert smartspec.best_length(alone) > 2
    crowd = view(*(record(n, 0.5) for n in range(256)), profile=StepProfile(0.02, 1e-3))
    assert 0 == smartspec.best_length(crowd)


# --- ladder ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sessions", "accepted", "length"), [(1, 7, 7), (1, 0, 1), (8, 3, 3), (32, 3, 1), (64, 7, 0)])
def test_ladder_climbs_as_far_as_its_batch_allows(sessions: int, accepted: int, length: int) -> None:
    """High acceptance climbs to the top rung of the batch's ladder, low acceptance stays at the bottom."""
    one = speculation.build("ladder", view(*(record(n, 0.5) for n in range(sessions))), RNG)
    item = ItemOutcome(0, 1, 7, accepted, accepted + 1, 0)
    for step in range(100):
        one.stepped(Outcome((item,), 0.02), float(step))
    assert (Grant(Mode.ROUND, length) if length else LOCAL) == one.decided(record(0, 0.5), item, 100.0)


# --- fair-goodput ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Stationary sessions with one verifier: what a joint choice of modes and lengths is worth."""

    fixed: float
    token: float
    context: float
    sessions: tuple[SessionRecord, ...]

    def optimum(self) -> float:
        """Largest utility of every joint choice: alone, draft-ahead or rounds of 1 to 16 each."""
        return float(np.max(self.utility(np.array(list(itertools.product(range(33), repeat=len(self.sessions)))).T)))

    def utility(self, choices: Vector) -> Vector:
        """Sums of log goodput; `choices`: (sessions, joint choices), numbers as `serve` takes them. Steps take as long as the
        load makes them, and no session waits for one, since one is always under way."""
        step = np.full(choices.shape[1], self.fixed)
        for _ in range(25):
            load = sum(self.serve(one, choice, step)[1] for one, choice in zip(self.sessions, choices, strict=True))
            step += 0.5 * (self.fixed / (1.0 - np.minimum(0.95, load)) - step)
        served = [self.serve(one, choice, step)[0] for one, choice in zip(self.sessions, choices, strict=True)]
        return np.asarray(sum(np.log(speed) for speed in served))

    def serve(self, one: SessionRecord, choice: Vector, step: Vector) -> tuple[Vector, Vector]:
        """Tokens and GPU-seconds per second of a session, in steps of `step` seconds. `choice`: 0 alone, 1 to 16 rounds,
        beyond that draft-ahead."""
        a, d, trip = one.acceptance.rate, one.draft_seconds.value, one.round_trip.value
        own = self.token + self.context * one.known
        length = np.where(choice > 16, 0, choice)
        seconds = np.where(length > 0, length * d + trip + step, step)
        speed, load = expected(a, length) / seconds, (own + self.token * length) / seconds
        ahead = np.maximum(1, choice - 16)
        with np.errstate(all="ignore"):
            caught = a ** ((trip + step) / (step - d))
            possible = (choice > 16) & (d < 0.95 * step) & (caught > 1e-6)
            verified = np.minimum(ahead, step / d - 1.0)
            slow, fast = (1.0 / caught - 1.0) / (1.0 - a), 1.0 / (1.0 - a**verified)
            share = fast / (slow + fast)
            streamed = (1.0 - share + share * expected(a, verified)) / step
        speed = np.where(possible, streamed, speed)
        load = np.where(possible, (own + self.token * verified * share) / step, load)
        return speed, load

    def settle(self) -> float:
        """Utility of what the policy arrives at, deciding one session after another with a step in between."""
        one = self._view(self.fixed)
        policy = FairGoodput(one, 1.0)
        step, chosen = self.fixed, {}
        for now in range(400):
            for session in self.sessions:
                grant = policy.opened(session, 0.0) if now == 0 else policy.decided(session, NOTHING, float(now))
                offer = policy._held[session.session].offer
                chosen[session.session] = (offer, grant)
                session.identity.goodput.value = offer.tokens / offer.seconds
            load = sum(offer.gpu_seconds / offer.seconds for offer, _ in chosen.values())
            step += 0.2 * (self.fixed / (1.0 - min(0.95, load)) - step)
            one.step_seconds.value = step
            policy.stepped(Outcome((), step), float(now))
        grants = [policy._held[session.session].offer.grant for session in self.sessions]
        final = [[grant.length + 16 * (grant.mode is Mode.STREAM)] for grant in grants]
        return float(self.utility(np.array(final))[0])

    def _view(self, step: float) -> View:
        found = view(*self.sessions, profile=StepProfile(self.fixed, self.token, self.context))
        found.step_seconds.observe(step)
        return found


def expected(a: float, length: Vector) -> Vector:
    """Tokens of a round of `length`: 1 + a + ... + a^length."""
    return (1.0 - a ** (length + 1.0)) / (1.0 - a)


NOTHING = ItemOutcome(0, 1, 0, 0, 1, 0)


@pytest.mark.parametrize("seed", range(WORLDS))
def test_fair_goodput_meets_the_joint_optimum(seed: int) -> None:
    """Deciding session by session at one price ends within 1 % goodput (0.01 per session in sum log) of brute force."""
    rng = np.random.default_rng(seed)
    sessions = tuple(
        record(
            n,
            float(rng.uniform(0.3, 0.95)),
            float(rng.uniform(0.001, 0.02)),
            float(rng.uniform(0.001, 0.08)),
            int(rng.integers(50, 2000)),
        )
        for n in range(3)
    )
    token, context = float(10 ** rng.uniform(-5, -2.7)), float(10 ** rng.uniform(-8, -6))
    world = World(float(rng.uniform(0.01, 0.03)), token, context, sessions)
    assert world.settle() >= world.optimum() - 0.01 * len(sessions)


def test_fair_goodput_stays_local_where_drafting_cannot_pay() -> None:
    """A hopeless drafter, far away, on steps that are cheap: target-only."""
    hopeless = record(1, 0.05, draft=0.05, trip=0.3)
    one = FairGoodput(view(hopeless), 1.0)
    one.opened(hopeless, 0.0)
    for now in range(20):
        one.stepped(Outcome((), 0.02), float(now))
        grant = one.decided(hopeless, NOTHING, float(now))
    assert LOCAL == grant


def test_who_is_at_an_unknown_distance_is_not_waited_for() -> None:
    """A round would be best next door; it is begun once that is known to be where the drafter is."""
    near = record(1, 0.6, trip=0.002)
    assert FairGoodput(view(near), 1.0).opened(near, 0.0).mode is Mode.ROUND
    unheard = record(1, 0.6, trip=0.0)
    one = FairGoodput(view(unheard), 1.0)
    assert one.opened(unheard, 0.0).mode is Mode.STREAM
    assert one.decided(unheard, NOTHING, 0.1).mode is Mode.STREAM
    unheard.round_trip.observe(0.002)
    assert [Mode.STREAM, Mode.ROUND] == [one.decided(unheard, NOTHING, now).mode for now in (0.2, 0.3)]


def test_what_the_governor_is_told_does_not_drift_with_goodput() -> None:
    """Tokens of an identity per second, in the mean: the same whatever everybody is believed to have had."""
    earned = []
    for believed in (5.0, 50.0):
        records = [record(n, 0.8) for n in range(2)]
        policy = fair_goodput.build("", view(*records), RNG)
        for one in records:
            one.identity.goodput.value = believed
            policy.opened(one, 0.0)
        items = tuple(ItemOutcome(one.session, 1, 4, 3, 4, 0) for one in records)
        so_far = [0.0]
        for step in range(1, 60):
            policy.stepped(Outcome(items, 0.02), 0.1 * step, sum(4 * one.worth for one in records))
            so_far.append(policy._governor._earned)
        earned.append(max(after - before for before, after in itertools.pairwise(so_far)))

    assert earned == pytest.approx([4.0, 4.0])


def test_fair_goodput_forgets_sessions_that_close() -> None:
    """When all have gone, its sums are zero again."""
    one = FairGoodput(view(), 1.0)
    sessions = [record(n, 0.6) for n in range(5)]
    for session in sessions:
        one.opened(session, 0.0)
    for session in sessions:
        one.closed(session)
    assert (0.0, 0.0, 0.0) == (one._earning, one._using, one._load)


@pytest.mark.parametrize("rate", [0.5, 0.75, 0.85])
def test_a_pace_is_kept_with_the_least_work(rate: float) -> None:
    """Where there is time for it, a session of a class gets the length of least GPU time a token, by trying them all; where
    there is less, one that keeps the pace."""
    profile = StepProfile(0.004, 2.5e-4, 5.5e-6)
    fixed, token, context = profile.coefficients[:3]

    def granted(pace: float) -> Grant:
        one = record(0, rate, draft=0.04, trip=0.02, known=500)
        one.service, one.first_at, one.due = ServiceClass("paced", tpot_seconds=1.0 / pace), 0.0, 2.0
        one.emitted = int(pace)
        policy = speculation.build("fair-goodput", view(one, profile=profile), RNG)
        policy.opened(one, 0.5)
        return policy.decided(one, ItemOutcome(0, 1, 0, 0, 1, 0), 1.0)

    work = {n: (token * (1 + n) + context * 500) / expected_tokens(rate, n) for n in range(9)}
    assert Grant(Mode.ROUND, min(work, key=work.__getitem__)) == granted(2.0)

    quick = granted(16.0)
    seconds = 0.02 + 0.04 * quick.length + fixed + token
    assert quick.mode is Mode.ROUND and expected_tokens(rate, quick.length) / seconds >= 16.0


@pytest.mark.parametrize("argument", ["x", "-1", "5", "nan"])
def test_a_strange_phi_is_refused(argument: str) -> None:
    """phi is a number from 0 to 4."""
    with pytest.raises(ConfigurationError, match="PHI from 0 to 4"):
        fair_goodput.build(argument, view(), RNG)
