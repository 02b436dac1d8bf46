"""A text without a model: the next token is a function of all that came before, so that every stream has one right answer.

The function is a running CRC over the ids, so that following a text costs the same at any length.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence

VOCABULARY = 1000
START = 0
"""State of the empty text."""
ID_BYTES = tuple(array("H", [token]).tobytes() for token in range(VOCABULARY))
"""What one more token adds to the CRC."""


TOKENS = tuple(range(VOCABULARY))
"""Every text is made of these very objects: thousands of sessions whose tokens are numbers of their own each do not fit into
a processor's cache, which costs a quarter of a run."""


def follow(tokens: Sequence[int], state: int = START) -> int:
    """State after `tokens` behind a text of `state`. The token that the target says next is `state % VOCABULARY`."""
    return zlib.crc32(array("H", tokens).tobytes(), state)


def next_token(text: Sequence[int]) -> int:
    """What the modelled target says after `text`."""
    return follow(text) % VOCABULARY


def reference(prompt: Sequence[int], count: int) -> list[int]:
    """The `count` tokens that follow `prompt`, whoever drafts what."""
    truth = Truth(prompt)
    return truth.between(len(prompt), len(prompt) + count)


class Truth:
    """The text that follows a prompt, worked out as far as somebody asks."""

    __slots__ = ("_state", "start", "tokens")

    def __init__(self, prompt: Sequence[int]) -> None:
        self.start = len(prompt)
        self.tokens: list[int] = []
        """From position `start` on."""
        self._state = follow(prompt)

    def between(self, start: int, end: int) -> list[int]:
        """Tokens at positions `start` to `end` (exclusive), neither before the end of the prompt."""
        first, last = start - self.start, end - self.start
        tokens = self.tokens
        missing = last - len(tokens)
        if missing > 0:
            state, crc = self._state, zlib.crc32
            for _ in range(missing):
                token = TOKENS[state % VOCABULARY]
                tokens.append(token)
                state = crc(ID_BYTES[token], state)
            self._state = state
        return tokens[first:last]
