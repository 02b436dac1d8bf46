"""A branch under any interleaving of verdicts, guesses that land late, and messages sent."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from drafter.branch import Branch
from drafter.speculators import Guess

TOKENS = st.lists(st.integers(0, 2), max_size=4)


class Interleavings(RuleBasedStateMachine):
    @initialize(text=st.lists(st.integers(0, 2), min_size=1, max_size=3))
    def begin(self, text: list[int]) -> None:
        self.branch = Branch(text)
        self.text = list(text)
        self.believed = list(text)
        self.under_way: list[tuple[int, int, list[int]]] = []
        self.told: list[int] = []
        """What the verifier has been told of the present branch, text included."""

    @precondition(lambda self: len(self.under_way) < 3)
    @rule(tokens=TOKENS)
    def drafting_begins(self, tokens: list[int]) -> None:
        """The model is asked behind what is believed now; its answer comes later."""
        self.under_way.append((self.branch.end, self.branch.version, self.believed + tokens))

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 2))
    def drafting_ends(self, which: int) -> None:
        base, version, belief = self.under_way.pop(which % len(self.under_way))
        before = list(self.believed)
        kept = self.branch.land(base, version, [Guess(token) for token in belief[base:]])
        if kept:
            assert version == self.branch.version
            assert before == belief[: len(before)], "only what goes on from the present belief is kept"
            self.believed = belief
            assert len(belief) - len(before) == kept
        elif version == self.branch.version and before == belief[: len(before)]:
            assert len(belief) <= len(before)
        assert self.believed == self.branch.belief

    @rule(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=4))
    def a_verdict_comes(self, tokens: list[int]) -> None:
        guessed = len(self.branch.ahead)
        dropped = len(self.branch.confirm(tokens).dropped)
        self.text += tokens
        contradicted = self.text[: len(self.believed)] != self.believed[: len(self.text)]
        if contradicted or len(self.text) >= len(self.believed):
            self.believed = list(self.text)
        assert (dropped > 0) == contradicted
        assert guessed - len(self.branch.ahead) >= dropped

    @rule()
    def all_is_sent(self) -> None:
        position, guesses = self.branch.unsent()
        assert self.believed[position:] == [guess.token for guess in guesses]
        self.branch.sent = len(self.branch.ahead)

    @invariant()
    def what_is_sent_is_ahead(self) -> None:
        assert 0 <= self.branch.sent <= len(self.branch.ahead)

    @invariant()
    def the_belief_begins_with_the_text(self) -> None:
        assert self.text == self.branch.text
        assert self.believed == self.branch.belief
        assert len(self.believed) == self.branch.end
        assert self.text == self.branch.belief[: len(self.text)]


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
