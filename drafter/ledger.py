"""What became of every guess of one generation: counted, and learnt from.

    drafted = accepted + refused + stale + trimmed + discarded + those still ahead

*accepted* and *refused* were verified; *stale* ones were sent, and the text was another before they were verified; *trimmed*
ones waited at the verifier when it ran a step without them, and were wrong then; *discarded* ones were of no use: never sent,
or overtaken by a text that says the same. Alternatives (drafter.alternatives) are drafted when they are sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from drafter.branch import Settled
from drafter.early_stop import TYPICAL, EarlyStop, Seen, Watch, features, remember
from drafter.observer import Observer
from drafter.speculators import Guess
from specfleet.core.protocol import Verdict
from specfleet.core.records import made
from specfleet.core.types import SamplingParams

RUNNER_UP = "runner-up"
"""What second guesses are called, among speculators and kinds of guesses."""


class Ledger:
    """`early`: what is known of guesses; None to know nothing, and stop nowhere."""

    __slots__ = (
        "_behind_the_end",
        "_beside",
        "_early",
        "_kinds",
        "_matches",
        "_observer",
        "_rule",
        "_speculator",
        "record",
    )

    def __init__(self, speculator: str, sampling: SamplingParams, early: EarlyStop | None, observer: Observer) -> None:
        self._speculator = speculator
        self._rule = "greedy" if sampling.greedy else "seeded" if sampling.match_rule else "unseeded"
        self._matches = sampling.match_rule
        self._kinds = {"model": self._kind_of("model")}
        self._early = early
        self._observer = observer
        self.record = early.predictor(self._kind("model")).typical if early else TYPICAL
        """Share of this generation's newest labelled guesses that were right."""
        self._beside = False
        """Some were ever sent."""
        self._behind_the_end = 0
        """Alternatives that the last verdict verified, to guesses that stand behind the text's end."""

    def drafted(
        self, guesses: Sequence[Guess], place: int, seconds: float, ahead: bool, watch: Watch | None = None
    ) -> list[Guess]:
        """Guesses that took `seconds`, the first with `place` others between it and the confirmed text: with their chances.
        `ahead`: on the assumption that a verdict to come agrees. `watch`: what looked at them as they were made."""
        self._observer.drafted(self._speculator, len(guesses), seconds)
        each = seconds / len(guesses) if guesses else 0.0
        if self._early is None:
            return [made(Guess, (*guess[:6], each, ahead, *guess[8:])) for guess in guesses]
        seen = watch.seen if watch is not None else ()
        return [
            self._noted(self._early, guess, place + n, each, ahead, seen[n] if n < len(seen) else None)
            for n, guess in enumerate(guesses)
        ]

    def _noted(
        self, early: EarlyStop, guess: Guess, place: int, seconds: float, ahead: bool, seen: Seen | None
    ) -> Guess:
        token, q, confidence, source, x, chance, *_ = guess
        y, second = guess.runner_up_features, guess.runner_up_chance
        if confidence is not None:
            if seen is not None and seen[0] is confidence:
                _, x, chance = seen
            else:
                x = features(confidence, place, self.record)
                chance = early.predictor(self._kind(source)).chance(x)
            if confidence.runner_up is not None:
                y = features(confidence._replace(chosen=confidence.runner_up_share), place, self.record)
                second = early.predictor(self._kind(RUNNER_UP)).chance(y)
        return made(Guess, (token, q, confidence, source, x, chance, seconds, ahead, y, second, guess.alternative))

    def watch(self, place: int, survival: float, least: float) -> Watch | None:
        """What stops a draft behind `place` guesses that are all right with chance `survival`."""
        if self._early is None:
            return None
        # Only a model's guesses cost time one by one.
        return Watch(self._early.predictor(self._kind("model")), place, self.record, survival, least)

    def sent_alternatives(self, count: int) -> None:
        """Runner-ups that go to the verifier beside their guesses. They took no time."""
        if count:
            self._beside = True
            self._observer.drafted(RUNNER_UP, count, 0.0)

    def settle(self, settled: Settled, verdict: Verdict) -> None:
        """A verdict's guesses."""
        if self._early is not None:
            self._learn(self._early, settled)
        if settled.accepted:
            self._fate("accepted", settled.accepted)
        if settled.overtaken:
            self.discard("overtaken", settled.overtaken, used=True)
        if settled.wrong is not None:
            # Of the stale ones the verifier had so many when it left them out.
            self._drop(settled, verdict.trimmed, "contradicted")
        else:
            self._drop_beside(settled.beside, "contradicted")
        if self._beside:
            self._settle_alternatives(settled, verdict)

    def finish(self, settled: Settled) -> None:
        """Guesses that were ahead when the session ended."""
        self._drop(settled, 0, "ended")
        if not self._beside:
            return
        beside, _, stale = settled.alternatives
        refused = min(self._behind_the_end, beside)
        self._count_alternatives("refused", refused)
        self._count_alternatives("stale", beside + stale - refused, "ended")

    def _settle_alternatives(self, settled: Settled, verdict: Verdict) -> None:
        """Which of them the step took is not said, only how many."""
        beside, overtaken, stale = settled.alternatives
        verified = min(verdict.alternatives, beside)
        self._behind_the_end = verdict.alternatives - verified
        self._count_alternatives("accepted", int(verdict.alternative_accepted))
        self._count_alternatives("refused", verified - verdict.alternative_accepted)
        self._count_alternatives("trimmed", beside - verified, "contradicted")
        self._count_alternatives("stale", stale, "contradicted")
        self._count_alternatives("discarded", overtaken, "overtaken")

    def _count_alternatives(self, fate: str, count: int, reason: str = "") -> None:
        if count > 0:
            self._observer.fate(fate, count, 0.0, fate == "accepted")
            if reason:
                self._observer.discarded(reason, count)

    def discard(self, reason: str, guesses: Sequence[Guess], used: bool = False) -> None:
        """Guesses of no use; `used` where others stood on them."""
        if guesses:
            self._observer.discarded(reason, len(guesses))
            self._fate("discarded", guesses, used)

    def _drop(self, settled: Settled, trimmed: int, reason: str) -> None:
        if settled.refused:
            self._fate("refused", settled.refused)
        if settled.stale:
            self._fate("trimmed", settled.stale[:trimmed])
            self._fate("stale", settled.stale[trimmed:])
            self._observer.discarded(reason, len(settled.stale))
        if settled.unsent:
            self.discard(reason, settled.unsent)
        self._drop_beside(settled.beside, reason)

    def _drop_beside(self, guesses: Sequence[Guess], reason: str) -> None:
        if guesses:
            self._observer.discarded(reason, len(guesses))
            self._fate("stale", guesses)

    def _fate(self, fate: str, guesses: Sequence[Guess], used: bool = False) -> None:
        if not guesses:
            return
        used = used or fate == "accepted"
        seconds, ahead = 0.0, 0
        for guess in guesses:
            seconds += guess.seconds
            ahead += guess.early
        self._observer.fate(fate, len(guesses), seconds, used)
        if ahead:
            self._observer.ahead(ahead, used)

    def _learn(self, early: EarlyStop, settled: Settled) -> None:
        """The rejection rule labels only what it verified; a text that can be but one labels whatever was guessed."""
        matched = self._matches
        for guess in settled.right if matched else settled.accepted:
            self._label(early, guess, True)
        if settled.wrong is not None and (matched or settled.refused):
            self._label(early, settled.wrong, False)
            self._label_runner_up(settled.wrong, settled.instead)
        self._observer.calibration(early.calibration.error)

    def _label(self, early: EarlyStop, guess: Guess, right: bool) -> None:
        if not guess.features:
            return
        early.learn(self._kind(guess.source), guess.features, guess.chance, right)
        self.record = remember(self.record, right)

    def _label_runner_up(self, guess: Guess, instead: int | None) -> None:
        """Whether a second choice is right is asked where the first is the first wrong one."""
        if self._early is not None and guess.runner_up_features and guess.confidence is not None:
            right = guess.confidence.runner_up == instead
            self._early.predictor(self._kind(RUNNER_UP)).learn(guess.runner_up_features, right)

    def _kind(self, source: str) -> str:
        return self._kinds.get(source) or self._kind_of(source)

    def _kind_of(self, source: str) -> str:
        return f"{source}-{self._rule}"
