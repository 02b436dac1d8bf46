"""What a drafter believes: the confirmed text, its own guesses behind it, and how many of them are on their way.

    text:   prompt ....... output ...... |
    ahead:                               | sent ...... | not sent yet ... |
            0                            len(text)                        end

Pure bookkeeping: `confirm` moves tokens from `ahead` to `text`, or drops a branch that the verifier contradicted.
"""

from __future__ import annotations

from collections.abc import Sequence

from drafter.speculators import Guess


class Branch:
    def __init__(self, text: Sequence[int]) -> None:
        self.text: list[int] = list(text)
        self.ahead: list[Guess] = []
        self.sent = 0
        """How many of `ahead` were sent."""
        self.version = 0
        """Goes up whenever a branch is dropped: guesses made for an older version are of no use."""

    @property
    def end(self) -> int:
        """Position behind the last guess."""
        return len(self.text) + len(self.ahead)

    @property
    def belief(self) -> list[int]:
        """Confirmed text and guesses."""
        return self.text + [guess.token for guess in self.ahead]

    def confirm(self, tokens: Sequence[int]) -> int:
        """Take in committed tokens; returns how many guesses were dropped because they were contradicted."""
        dropped = 0
        for token in tokens:
            self.text.append(token)
            if not self.ahead:
                continue
            if self.ahead[0].token == token:
                del self.ahead[0]
                self.sent = max(0, self.sent - 1)
            else:
                dropped += self.drop()
        return dropped

    def land(self, base: int, version: int, guesses: Sequence[Guess]) -> int:
        """Take in guesses for positions from `base` on, drafted when the branch had `version`; returns how many are kept.

        The text may have grown past `base` meanwhile: guesses that agree with it have done their part, and the first one
        that does not spoils the rest.
        """
        if version != self.version:
            return 0
        behind = min(max(0, self.end - base), len(guesses))
        believed = self.belief[base : base + behind]
        if [guess.token for guess in guesses[:behind]] != believed:
            return 0
        self.ahead.extend(guesses[behind:])
        return len(guesses) - behind

    def drop(self) -> int:
        """Forget all guesses; returns how many."""
        count = len(self.ahead)
        self.ahead.clear()
        self.sent = 0
        self.version += 1
        return count

    def unsent(self) -> tuple[int, list[Guess]]:
        """Position and guesses of what was not sent yet."""
        return len(self.text) + self.sent, self.ahead[self.sent :]
