"""Incremental detokenization: token ids in, text out, never half a character."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

_REPLACEMENT = "\ufffd"
_LONGEST_WAIT = 16
"""Tokens to wait for a character to be completed. None is longer than four bytes, so what waits longer is no text, and
waiting on would make long runs of it quadratic."""


class Decoder(Protocol):
    def decode(self, token_ids: list[int]) -> str: ...


class Detokenizer:
    """Gives text as soon as it is certain; what it gives, joined, is the decoding of all ids.

    Decoders look back (a leading space is dropped at the start only), so a token is never decoded alone:

        window   | border … read | read … end |     both ends of the first part lie between whole characters
        text     |    given      |    new     |     new = decode(window)[len(decode(given part)):]

    Linear time: the window begins at the last border but one.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._window: list[int] = []
        self._read = 0
        self._given = ""

    def feed(self, token_id: int) -> str:
        """Text that this token completes; "" while a character is incomplete."""
        self._window.append(token_id)
        text = self._decoder.decode(self._window)
        waiting = len(self._window) - self._read
        if text.endswith(_REPLACEMENT) and waiting < _LONGEST_WAIT:
            return ""
        return self._give(text)

    def feed_all(self, token_ids: Iterable[int]) -> str:
        return "".join(map(self.feed, token_ids))

    def flush(self) -> str:
        """What is held back, incomplete characters as U+FFFD. Call once, at the end."""
        return self._give(self._decoder.decode(self._window))

    def _give(self, text: str) -> str:
        new = text[len(self._given) :]
        del self._window[: self._read]
        self._read = len(self._window)
        self._given = self._decoder.decode(self._window)
        return new
