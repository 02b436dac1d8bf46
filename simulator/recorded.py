"""Acceptance as it was recorded: which positions of real texts a draft model had right.

A file has a line per text, a digit per position of its output: 1 where the draft model's guess, from the text before it, was
the target's token. Guesses are right in runs, and about some texts more often than about others: no single chance says that.
"""

from __future__ import annotations

import random
from pathlib import Path

from specfleet.core.errors import ConfigurationError

Text = tuple[int, ...]
"""By position: from which on, behind it, the first guess is wrong. So a run's end is found in one look."""


def read_acceptance(path: Path) -> list[Text]:
    """Its texts. Empty lines do not count.

    Raises:
        ConfigurationError: naming the file, and the line that cannot be read.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the acceptance trace {path}: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        digits = line.strip()
        if digits.strip("01"):
            raise ConfigurationError(
                f"{path}, line {number}: is {digits[:20]!r}, must be 0s and 1s, one for each position"
            )
        if digits:
            found.append(_ends(digits))
    if not found:
        raise ConfigurationError(f"{path} holds no texts")
    return found


def _ends(digits: str) -> Text:
    ends, end = [0] * len(digits), len(digits)
    for place in range(len(digits) - 1, -1, -1):
        if digits[place] == "0":
            end = place
        ends[place] = end
    return tuple(ends)


class Recorded:
    """One generation's text out of a trace; where it is longer, over again from the front."""

    __slots__ = ("_ends",)

    def __init__(self, texts: list[Text], rng: random.Random) -> None:
        self._ends = rng.choice(texts)

    def run(self, position: int, count: int) -> int:
        """How many of `count` guesses from output position `position` on are right before the first that is not."""
        right, ends = 0, self._ends
        while right < count:
            place = (position + right) % len(ends)
            run = ends[place] - place
            right += run
            if place + run < len(ends):
                break
        return min(right, count)
