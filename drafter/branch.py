"""What a drafter believes: the confirmed text, its own guesses behind it, and how many of them are on their way.

    text:   prompt ....... output ...... |
    ahead:                               | sent ...... | not sent yet ... |
            0                            len(text)                        end

Pure bookkeeping: `confirm` moves tokens from `ahead` to `text`, or drops a branch that the verifier contradicted, and says
what became of each guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from drafter.speculators import Guess


@dataclass(slots=True)
class Settled:
    """What became of the guesses that are no longer ahead."""

    accepted: list[Guess] = field(default_factory=list)
    overtaken: list[Guess] = field(default_factory=list)
    """The text says the same; the target had got there by itself."""
    refused: list[Guess] = field(default_factory=list)
    """Verified, and not accepted."""
    stale: list[Guess] = field(default_factory=list)
    """Sent, and contradicted before they were verified."""
    unsent: list[Guess] = field(default_factory=list)
    """Contradicted before they were sent."""
    wrong: Guess | None = None
    """The first guess that the text contradicts."""
    instead: int | None = None
    """What the text says in its place."""

    @property
    def alternatives(self) -> tuple[int, int, int]:
        """How many had been sent beside guesses that were verified, overtaken, and stale."""
        groups = (self.accepted + self.refused, self.overtaken, self.stale)
        verified, overtaken, stale = (sum(guess.alternative for guess in group) for group in groups)
        return verified, overtaken, stale

    @property
    def right(self) -> list[Guess]:
        return self.accepted + self.overtaken

    @property
    def dropped(self) -> list[Guess]:
        """The branch that was contradicted."""
        return self.refused + self.stale + self.unsent


class Branch:
    def __init__(self, text: Sequence[int]) -> None:
        self.text: list[int] = list(text)
        self.ahead: list[Guess] = []
        self.sent = 0
        """How many of `ahead` were sent."""
        self.version = 0
        """Goes up whenever a branch is dropped: guesses made for an older version are of no use."""
        self.verified = 0
        """Position behind the last token that a verdict was about."""

    @property
    def end(self) -> int:
        """Position behind the last guess."""
        return len(self.text) + len(self.ahead)

    @property
    def belief(self) -> list[int]:
        """Confirmed text and guesses."""
        return self.text + [guess.token for guess in self.ahead]

    @property
    def survival(self) -> float:
        """Estimated chance that all guesses ahead are right."""
        return math.prod(guess.chance for guess in self.ahead)

    def confirm(self, tokens: Sequence[int], accepted: int = 0, drafted: int = 0) -> Settled:
        """Take in committed tokens, the first `accepted` of `drafted` verified guesses among them."""
        start, settled = len(self.text), Settled()
        self.verified = start + drafted
        for token in tokens:
            position = len(self.text)
            self.text.append(token)
            if not self.ahead:
                continue
            if self.ahead[0].token == token:
                (settled.accepted if position < start + accepted else settled.overtaken).append(self.ahead.pop(0))
                self.sent = max(0, self.sent - 1)
            else:
                settled.wrong, settled.instead = self.ahead[0], token
                self._abandon(settled, position)
        return settled

    def finish(self) -> Settled:
        """No verdict will come any more."""
        settled = Settled()
        self._abandon(settled, len(self.text))
        return settled

    def _abandon(self, settled: Settled, position: int) -> None:
        """Drop all guesses, the first of which stands at `position`."""
        checked = min(max(0, self.verified - position), self.sent)
        settled.refused += self.ahead[:checked]
        settled.stale += self.ahead[checked : self.sent]
        settled.unsent += self.ahead[self.sent :]
        self.drop()

    def land(self, base: int, version: int, guesses: Sequence[Guess]) -> int:
        """Take in guesses for positions from `base` on, drafted when the branch had `version`; returns how many are kept.

        The text may have grown past `base` meanwhile: guesses that agree with it have done their part, and the first one
        that does not spoils the rest.
        """
        if version != self.version:
            return 0
        behind = min(max(0, self.end - base), len(guesses))
        if behind and [guess.token for guess in guesses[:behind]] != self.belief[base : base + behind]:
            return 0
        self.ahead.extend(guesses[behind:])
        return len(guesses) - behind

    def contradicts(self, base: int, version: int, tokens: Sequence[int]) -> bool:
        """Whether `tokens`, guessed for positions from `base` on when the branch had `version`, are of no use by now. Reads
        only: the engine's thread may ask."""
        said = self.text[base : base + len(tokens)]
        return version != self.version or said != list(tokens[: len(said)])

    def drop(self) -> int:
        """Forget all guesses; returns how many."""
        count = len(self.ahead)
        self.ahead.clear()
        self.sent = 0
        self.version += 1
        return count

    def mark_alternatives(self, places: Sequence[int]) -> None:
        """The runner-ups of these guesses ahead are sent with them."""
        for place in places:
            self.ahead[place] = self.ahead[place]._replace(alternative=True)

    def unsent(self) -> tuple[int, list[Guess]]:
        """Position and guesses of what was not sent yet."""
        return len(self.text) + self.sent, self.ahead[self.sent :]
