"""Stop strings across token borders: text that could be the start of one is held back until that is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Matcher:
    """Knuth-Morris-Pratt, one character at a time: `matched` is the longest prefix of `pattern` that the text ends with."""

    pattern: str
    matched: int = 0
    borders: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.borders = [0] * (len(self.pattern) + 1)
        length = 0
        for index in range(1, len(self.pattern)):
            while length and self.pattern[index] != self.pattern[length]:
                length = self.borders[length]
            length += self.pattern[index] == self.pattern[length]
            self.borders[index + 1] = length

    def advance(self, character: str) -> bool:
        """True when the pattern is complete; do not call again after that."""
        while self.matched and self.pattern[self.matched] != character:
            self.matched = self.borders[self.matched]
        self.matched += self.pattern[self.matched] == character
        return self.matched == len(self.pattern)


class StopStrings:
    """Passes text through until one of `stops` is complete; the text then ends before that string.

    Where two end at the same character, the longer one counts. Linear in text times number of strings.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._matchers = [_Matcher(stop) for stop in stops]
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Text that can be shown now. After `stopped` nothing more comes."""
        if not self._matchers or self.stopped:
            return "" if self.stopped else text
        pending = self._held + text
        for index in range(len(self._held), len(pending)):
            # A list, not a generator: every matcher must see every character.
            complete = [matcher for matcher in self._matchers if matcher.advance(pending[index])]
            if complete:
                self.stopped = True
                self._held = ""
                return pending[: index + 1 - max(len(matcher.pattern) for matcher in complete)]
        hold = max(matcher.matched for matcher in self._matchers)
        self._held = pending[len(pending) - hold :]
        return pending[: len(pending) - hold]

    def flush(self) -> str:
        """What was held back for a stop string that never came. Call once, at the end."""
        held, self._held = self._held, ""
        return held
