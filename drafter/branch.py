"""What a drafter believes: the confirmed text, its own guesses behind it, and how many of them are on their way.

    text:   prompt ....... output ...... |
    ahead:                               | sent ...... | not sent yet ... |
            0                            known                            end

Pure bookkeeping: `confirm` moves tokens from `ahead` to `text`, or drops a branch that the verifier contradicted, and says
what became of each guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from drafter.speculators import Guess
from specfleet.core.sequences import agreeing


@dataclass(slots=True)
class Settled:
    """What became of the guesses that are no longer ahead."""

    accepted: Sequence[Guess] = ()
    overtaken: Sequence[Guess] = ()
    """The text says the same; the target had got there by itself."""
    refused: Sequence[Guess] = ()
    """Verified, and not accepted."""
    stale: Sequence[Guess] = ()
    """Sent, and contradicted before they were verified."""
    unsent: Sequence[Guess] = ()
    """Contradicted before they were sent."""
    wrong: Guess | None = None
    """The first guess that the text contradicts."""
    instead: int | None = None
    """What the text says in its place."""
    beside: Sequence[Guess] = ()
    """Of branches beside that the text has decided against."""
    taken: bool = False
    """One of those is what was guessed from now on."""

    @property
    def alternatives(self) -> tuple[int, int, int]:
        """How many had been sent beside guesses that were verified, overtaken, and stale."""
        groups = ((*self.accepted, *self.refused), self.overtaken, self.stale)
        verified, overtaken, stale = (sum(guess.alternative for guess in group) for group in groups)
        return verified, overtaken, stale

    @property
    def right(self) -> list[Guess]:
        return [*self.accepted, *self.overtaken]

    @property
    def dropped(self) -> list[Guess]:
        """The branch that was contradicted."""
        return [*self.refused, *self.stale, *self.unsent]


class Branch:
    __slots__ = (
        "ahead",
        "belief",
        "beside",
        "known",
        "sent",
        "survival",
        "verified",
        "version",
    )

    def __init__(self, text: Sequence[int]) -> None:
        self.belief: list[int] = list(text)
        """Confirmed text and guesses: one list, since copying a text for every guess costs more than the rest of it."""
        self.known = len(self.belief)
        """Length of the confirmed text."""
        self.ahead: list[Guess] = []
        self.sent = 0
        """How many of `ahead` were sent."""
        self.beside: list[tuple[int, list[Guess]]] = []
        """Other branches that were sent: position and guesses of each."""
        self.survival = 1.0
        """Estimated chance that all guesses ahead are right."""
        self.version = 0
        """Goes up whenever a branch is dropped: guesses made for an older version are of no use."""
        self.verified = 0
        """Position behind the last token that a verdict was about."""

    @property
    def text(self) -> list[int]:
        """Confirmed."""
        return self.belief[: self.known]

    @property
    def end(self) -> int:
        """Position behind the last guess."""
        return len(self.belief)

    def confirm(self, tokens: Sequence[int], accepted: int = 0, drafted: int = 0) -> Settled:
        """Take in committed tokens, the first `accepted` of `drafted` verified guesses among them."""
        settled, ahead, start = Settled(), self.ahead, self.known
        self.verified = start + drafted
        self.known += len(tokens)
        if not ahead:
            self.belief += tokens
            return settled
        checked = self.belief[start : self.known]
        right = agreeing(checked, tokens)
        taken = min(max(0, accepted), right)
        settled.accepted, settled.overtaken = ahead[:taken], ahead[taken:right]
        del ahead[:right]
        self.sent = max(0, self.sent - right)
        if right < len(checked):
            settled.wrong, settled.instead = ahead[0], tokens[right]
            self._abandon(settled, start + right)
            del self.belief[start + right :]
        else:
            self.survival = math.prod([guess.chance for guess in ahead]) if ahead else 1.0
        self.belief += tokens[right:]
        if self.beside:
            self._decide(settled, start + right)
        return settled

    def _decide(self, settled: Settled, place: int) -> None:
        """What becomes of branches beside once the text agrees with this one up to `place`, and contradicts it there if it
        does at all: those that begin before it are wrong, and behind it stand on what is wrong. So says the verifier."""
        wrong, kept = settled.wrong is not None, []
        for position, guesses in self.beside:
            tokens = [guess.token for guess in guesses]
            behind = self.known - position
            if (
                wrong
                and position == place
                and agreeing(tokens, self.belief[position : self.known]) == min(len(tokens), behind)
            ):
                settled.overtaken = [*settled.overtaken, *guesses[:behind]]
                self.ahead += guesses[behind:]
                self.sent = len(self.ahead)
                self.survival = math.prod([guess.chance for guess in self.ahead])
                settled.taken = bool(self.ahead)
            elif wrong or position < place:
                settled.beside = [*settled.beside, *guesses]
            else:
                kept.append((position, guesses))
        self.belief += [guess.token for guess in self.ahead] if settled.taken else []
        self.beside = kept

    def finish(self) -> Settled:
        """No verdict will come any more."""
        settled = Settled()
        self._abandon(settled, self.known)
        settled.beside = [guess for _, guesses in self.beside for guess in guesses]
        self.beside.clear()
        return settled

    def _abandon(self, settled: Settled, position: int) -> None:
        """Drop all guesses, the first of which stands at `position`."""
        checked = min(max(0, self.verified - position), self.sent)
        settled.refused = self.ahead[:checked]
        settled.stale = self.ahead[checked : self.sent]
        settled.unsent = self.ahead[self.sent :]
        self.drop()

    def land(self, base: int, version: int, guesses: Sequence[Guess]) -> int:
        """Take in guesses for positions from `base` on, drafted when the branch had `version`; returns how many are kept.

        The text may have grown past `base` meanwhile: guesses that agree with it have done their part, and the first one
        that does not spoils the rest.
        """
        if version != self.version:
            return 0
        behind = min(len(self.belief) - base, len(guesses))
        if behind > 0:
            if [guess.token for guess in guesses[:behind]] != self.belief[base : base + behind]:
                return 0
            guesses = guesses[behind:]
        self.ahead += guesses
        self.belief += [guess.token for guess in guesses]
        self.survival *= math.prod([guess.chance for guess in guesses])
        return len(guesses)

    def contradicts(self, base: int, version: int, tokens: Sequence[int]) -> bool:
        """Whether `tokens`, guessed for positions from `base` on when the branch had `version`, are of no use by now. Reads
        only: the engine's thread may ask, and an answer that is a moment old is good enough."""
        said = self.belief[base : min(self.known, base + len(tokens))]
        return version != self.version or said != list(tokens[: len(said)])

    def drop(self) -> int:
        """Forget all guesses; returns how many."""
        count = len(self.ahead)
        self.ahead.clear()
        self.survival = 1.0
        del self.belief[self.known :]
        self.sent = 0
        self.version += 1
        return count

    def mark_alternatives(self, places: Sequence[int]) -> None:
        """The runner-ups of these guesses ahead are sent with them."""
        for place in places:
            self.ahead[place] = self.ahead[place]._replace(alternative=True)

    def unsent(self) -> tuple[int, list[Guess]]:
        """Position and guesses of what was not sent yet."""
        return self.known + self.sent, self.ahead[self.sent :]
