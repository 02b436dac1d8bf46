"""A session under any drafts and any commits, beside a plain model of what the docstrings say; and an honest drafter."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import accumulate, takewhile
from operator import mul
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from drafter.branch import Branch
from drafter.speculators import Guess
from specfleet.core.errors import PositionGap
from specfleet.core.protocol import Draft, Open
from specfleet.core.step import DraftDistribution, StepResult
from specfleet.core.types import FinishReason, SamplingParams
from support.engine import target_rule
from verifier.session import MAX_BRANCHES, MAX_PENDING, Session

WORDS = 3
EOS = 9
"""Not a word: it comes only where a rule puts it."""


def new_session(prompt: tuple[int, ...], sampling: SamplingParams, limit: int = 10_000) -> Session:
    async def make() -> Session:
        return Session(1, Open(prompt=prompt, sampling=sampling), (EOS,), limit)

    return asyncio.run(make())


def one_hot(token: int) -> DraftDistribution:
    return DraftDistribution((token,), (1.0,))


def chance(token: int) -> float:
    """What drafters say of a token, wherever it stands."""
    return 1.0 - token / 16.0


class Sessions(RuleBasedStateMachine):
    """Drafts come from anywhere: right, wrong, late, repeated, overlapping, of old branches, with any claim about what the
    drafter knew. Steps take what waits, and more drafts may come while they run."""

    @initialize(
        prompt=st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=5).map(tuple),
        max_tokens=st.integers(1, 100),
        room=st.integers(1, 100),
        rejection=st.booleans(),
        ignore_eos=st.booleans(),
        told=st.sampled_from([(0, 1), (1,), ()]),
    )
    def begin(
        self,
        prompt: tuple[int, ...],
        max_tokens: int,
        room: int,
        rejection: bool,
        ignore_eos: bool,
        told: tuple[int, ...],
    ) -> None:
        temperature = 1.0 if rejection else 0.0
        sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, ignore_eos=ignore_eos)
        self.last = min(len(prompt) + max_tokens, len(prompt) + room)
        self.session = new_session(prompt, sampling, len(prompt) + room)
        self.rejection, self.ignore_eos = rejection, ignore_eos
        self.told = told
        """Drafts that begin in even places, 0, or odd ones, 1, tell how likely they are."""
        self.text = list(prompt)
        self.waiting: list[int] = []
        self.contradicted = False
        self.heard = 0
        self.cut = False
        self.taken: list[int] | None = None
        self.sent: list[Draft] = []
        self.beside: list[Draft] = []
        self.broken_at = self.taken_at = self.dropped = self.waited = 0

    # What the docstrings say, in a few lines.

    def offered(self, draft: Draft) -> int | None:
        """Stale tokens, those that verdicts dropped meanwhile included; None for a gap."""
        dropped, self.dropped = self.dropped, 0
        stale = self.merged(draft)
        return None if stale is None else dropped + stale

    def merged(self, draft: Draft) -> int | None:
        known, start, tokens = len(self.text), draft.position, list(draft.tokens)
        if draft.confirmed < self.heard:
            return len(tokens)
        self.heard = draft.confirmed
        if draft.beside:
            if draft.confirmed < self.taken_at:
                return len(tokens)
            if self.contradicted or start < known:
                return self.decided(draft)
            if not tokens or len(self.beside) == MAX_BRANCHES:
                return len(tokens)
            self.beside.append(draft)
            return 0
        if start <= draft.confirmed:
            self.contradicted = False
        elif self.contradicted or draft.confirmed < self.taken_at:
            return len(tokens)
        if start > known + len(self.waiting):
            return None if draft.confirmed >= known and not self.cut else len(tokens)
        for at, token in enumerate(tokens, start):
            if at < known and self.text[at] != token:
                self.contradicted, self.broken_at = True, at
                return len(tokens)
        return self.appended(tokens[max(0, known - start) :], max(0, start - known))

    def appended(self, fresh: list[int], at: int) -> int:
        """The newest word on what waits from place `at` on; returns what it took the place of, or had none itself."""
        if self.waiting[at : at + len(fresh)] == fresh:
            return 0
        agreeing = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(self.waiting[at:], fresh, strict=False))))
        wanted = self.waiting[:at] + fresh
        lost = max(0, len(self.waiting) - at - agreeing)
        self.waiting = wanted[: max(0, min(MAX_PENDING, self.last - 1 - len(self.text)))]
        self.cut = len(self.waiting) < len(wanted)
        return lost + len(wanted) - len(self.waiting)

    def decided(self, draft: Draft) -> int:
        """A branch beside, once the text has gone past its first place or left what waited; returns its stale tokens."""
        tokens, said = list(draft.tokens), self.text[draft.position :]
        if not self.contradicted or draft.position != self.broken_at or not said or said[:1] != tokens[:1]:
            return len(tokens)
        self.taken_at = draft.position + 1
        for at, (one, other) in enumerate(zip(said, tokens, strict=False)):
            if one != other:
                self.broken_at = draft.position + at
                return len(tokens)
        self.contradicted = False
        return self.appended(tokens[len(said) :], 0)

    def committed(self, tokens: list[int], refused: int) -> int:
        """Returns how many were dropped without having been verified."""
        dropped = 0
        for token in tokens:
            self.text.append(token)
            if self.waiting and self.waiting.pop(0) != token:
                dropped = max(0, 1 + len(self.waiting) - refused)
                self.waiting, self.cut = [], False
                self.contradicted, self.broken_at = True, len(self.text) - 1
        undecided, left = [], self.contradicted
        for draft in self.beside:
            if left or draft.position < len(self.text):
                self.dropped += self.decided(draft)
            else:
                undecided.append(draft)
        self.beside = undecided
        self.dropped += dropped
        return dropped

    # What may happen.

    def offer(self, draft: Draft) -> None:
        expected = self.offered(draft)
        try:
            stale = self.session.offer(draft).stale
        except PositionGap:
            assert expected is None
            assert draft.confirmed >= len(self.text)
            return
        assert expected == stale
        self.sent.append(draft)

    def draft(self, position: int, tokens: tuple[int, ...], confirmed: int, last: bool, beside: bool = False) -> Draft:
        q = tuple(map(one_hot, tokens)) if self.rejection and tokens else None
        told = position % 2 in self.told and bool(tokens)
        survival = tuple(accumulate(map(chance, tokens), mul)) if told else None
        return Draft(
            position=position,
            tokens=tokens,
            confirmed=confirmed,
            last=last,
            q=q,
            survival=survival,
            beside=beside,
        )

    @rule(data=st.data(), last=st.booleans(), beside=st.booleans())
    def any_draft(self, data: st.DataObject, last: bool, beside: bool) -> None:
        end = len(self.text) + len(self.waiting)
        position = data.draw(st.integers(max(0, len(self.text) - 4), end + 1))
        tokens = tuple(data.draw(st.lists(st.integers(0, WORDS - 1), max_size=8)))
        confirmed = data.draw(st.integers(max(0, len(self.text) - 4), len(self.text) + 1))
        self.offer(self.draft(position, tokens, confirmed, last, beside and not self.rejection))

    @rule(data=st.data(), long=st.integers(1, MAX_PENDING + 8))
    def a_continuation(self, data: st.DataObject, long: int) -> None:
        """Agrees with all that is known, from a place in the text on, and goes on for long."""
        believed = self.text + self.waiting
        position = data.draw(st.integers(max(0, len(self.text) - 4), len(believed)))
        tokens = (believed[position:] + [data.draw(st.integers(0, WORDS - 1))] * long)[: MAX_PENDING * 2]
        self.offer(self.draft(position, tuple(tokens), len(self.text), last=False))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def a_repetition(self, data: st.DataObject) -> None:
        self.offer(data.draw(st.sampled_from(self.sent[-10:])))

    @precondition(lambda self: self.taken is None and self.session.finished is None)
    @rule(most=st.integers(0, 12))
    def a_step_begins(self, most: int) -> None:
        self.taken, q = self.session.take_draft(most)
        self.waited = len(self.waiting)
        assert self.waiting[:most] == self.taken
        assert q == (list(map(one_hot, self.taken)) if self.rejection else None)

    @precondition(lambda self: self.taken is not None)
    @rule(data=st.data(), own=st.sampled_from([*range(WORDS), *range(WORDS), EOS]))
    def a_step_ends(self, data: st.DataObject, own: int) -> None:
        assert self.taken is not None
        accepted = data.draw(st.integers(0, len(self.taken)))
        tokens = [*self.taken[:accepted], own]
        verdict = self.session.commit(StepResult(accepted, tuple(tokens)), len(self.taken))
        ends = [i for i, token in enumerate(tokens) if token == EOS and not self.ignore_eos][:1]
        kept = min([len(tokens), self.last - len(self.text), *(end + 1 for end in ends)])
        assert (len(self.text), tuple(tokens[:kept])) == (verdict.position, verdict.tokens)
        assert (len(self.taken), min(accepted, kept)) == (verdict.drafted, verdict.accepted)
        assert len(verdict.tokens) == verdict.accepted + 1 or self.session.finished is not None
        left = max(0, self.waited - len(self.taken))
        dropped = self.committed(tokens[:kept], verdict.drafted - verdict.accepted)
        assert verdict.trimmed <= min(left, dropped)
        reason = None
        if self.text[-1] == EOS and not self.ignore_eos:
            reason = FinishReason.STOP
        elif len(self.text) == self.last:
            reason = FinishReason.LENGTH
        assert reason is self.session.finished
        assert self.session.computed == len(self.text) - 1
        assert not self.session.complete or self.waiting
        self.taken = None

    # What always holds.

    @invariant()
    def chances_are_those_of_the_tokens_in_front(self) -> None:
        told = self.session.chances
        assert [chance(token) for token in self.waiting[: len(told)]] == pytest.approx(told)
        assert len(told) == len(self.waiting) or self.told != (0, 1)
        assert not told or self.told

    @invariant()
    def text_and_waiting_are_the_models(self) -> None:
        assert self.text == self.session.tokens
        assert self.waiting == self.session.take_draft(10**6)[0]
        assert len(self.waiting) == self.session.pending <= MAX_PENDING
        assert len(self.text) + len(self.waiting) <= max(len(self.text), self.last - 1)

    @invariant()
    def distributions_stay_beside_their_tokens(self) -> None:
        if self.rejection:
            assert list(map(one_hot, self.session._pending)) == self.session._pending_q

    @invariant()
    def usage_adds_up(self) -> None:
        usage = self.session.usage
        assert len(self.text) == usage.prompt_tokens + usage.completion_tokens <= self.last


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("tokens", [(2, 1), (2,), (2, 0)])
def test_a_late_branch_beside_meets_what_waits(tokens: tuple[int, ...]) -> None:
    """A drafter that says the text went another way, and then that it did not: what waited goes or stays, and is counted."""
    state = Sessions()
    state.begin(prompt=(0, 2), max_tokens=2, room=2, rejection=False, ignore_eos=False, told=(0, 1))
    for position, guesses, beside in ((2, (0,), False), (0, (0, 0), False), (1, tokens, True)):
        state.offer(state.draft(position, guesses, 0, False, beside))
        state.chances_are_those_of_the_tokens_in_front()
        state.text_and_waiting_are_the_models()


class Honest:
    """A drafter that does as it should, messages in order in both directions, each any time under way."""

    def __init__(self, max_tokens: int) -> None:
        self.session = new_session((1, 2), SamplingParams(temperature=0.0, max_tokens=max_tokens))
        self.branch = Branch([1, 2])
        self.up: deque[tuple[Draft, list[int]]] = deque()
        self.down: deque[tuple[int, ...]] = deque()

    def send(self, right: list[bool]) -> None:
        branch = self.branch
        for good in right:
            token = target_rule(branch.belief)
            branch.land(branch.end, branch.version, [Guess(token if good else (token + 1) % 50)])
        position, guesses = branch.unsent()
        branch.sent = len(branch.ahead)
        tokens = tuple(guess.token for guess in guesses)
        self.up.append((Draft(position=position, tokens=tokens, confirmed=branch.known), list(branch.belief)))

    def beside(self, place: int, right: list[bool]) -> None:
        """What follows another token at one of the places sent, mostly the target's own."""
        branch = self.branch
        if place >= branch.sent or any(at == branch.known + place for at, _ in branch.beside):
            return
        position = branch.known + place
        text = branch.belief[:position]
        own = target_rule(text)
        text.append(own if own != branch.belief[position] else (own + 2) % 50)
        for good in right:
            text.append(target_rule(text) if good else (target_rule(text) + 1) % 50)
        branch.beside.append((position, [Guess(token) for token in text[position:]]))
        draft = Draft(position=position, tokens=tuple(text[position:]), confirmed=branch.known, beside=True)
        self.up.append((draft, text))

    def arrive(self) -> None:
        if not self.up:
            return
        draft, belief = self.up.popleft()
        if draft.beside:
            self.session.offer(draft)
            return
        before = self.session.take_draft(MAX_PENDING)[0]
        owed = self.session._stale
        stale = self.session.offer(draft).stale - owed
        text, waiting = self.session.tokens, self.session.take_draft(MAX_PENDING)[0]
        common = min(len(text), len(belief))
        if text[:common] == belief[:common]:
            # The drafter has seen nothing that speaks against its belief: all of it waits, up to the session's end.
            assert stale <= max(0, draft.position + len(draft.tokens) - (self.session._last - 1))
            both = min(len(belief), len(text + waiting))
            assert belief[:both] == (text + waiting)[:both]
            assert both >= min(len(belief), self.session._last - 1)
        else:
            assert before == waiting
            assert len(draft.tokens) == stale

    def step(self, most: int) -> None:
        if self.session.finished is not None:
            return
        draft = self.session.take_draft(most)[0]
        text, accepted = list(self.session.tokens), 0
        while accepted < len(draft) and draft[accepted] == target_rule(text):
            text.append(draft[accepted])
            accepted += 1
        self.down.append(
            self.session.commit(StepResult(accepted, (*draft[:accepted], target_rule(text))), len(draft)).tokens
        )

    def hear(self) -> None:
        if self.down:
            self.branch.confirm(self.down.popleft())


MOVES = st.one_of(
    st.tuples(st.just("send"), st.lists(st.sampled_from([True, True, True, False]), max_size=4)),
    st.tuples(st.just("beside"), st.integers(0, 3), st.lists(st.sampled_from([True, False]), max_size=4)),
    st.tuples(st.just("arrive"), st.none()),
    st.tuples(st.just("step"), st.integers(0, 6)),
    st.tuples(st.just("hear"), st.none()),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(MOVES, max_size=60), st.integers(5, 40))
def test_an_honest_drafter_is_understood(moves: list[tuple[Any, ...]], max_tokens: int) -> None:
    """However late messages are, what a drafter believes waits if the text agrees with it, is stale if not, and never a
    gap; the text is the target's own; and once all has arrived both sides believe the same."""
    one = Honest(max_tokens)
    for name, *arguments in moves:
        getattr(one, name)(*(argument for argument in arguments if argument is not None))
    while one.up or one.down:
        one.arrive()
        one.hear()
    if one.session.finished is None:
        waiting = one.session.take_draft(MAX_PENDING)[0]
        believed = one.branch.belief[: one.branch.known + one.branch.sent]
        assert believed[: one.session._last - 1] == [*one.session.tokens, *waiting]
    expected = [1, 2]
    while len(expected) < len(one.session.tokens):
        expected.append(target_rule(expected))
    assert expected == one.session.tokens
