"""Pages of a modelled KV pool: counts, and which prompts' pages are shared.

A page belongs to one sequence, or, once the prompt's tokens in it are computed and there is a prefix cache, to whoever has the
same prompt up to its end. Shared pages that nobody holds stay until their room is needed, oldest first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from specfleet.core.errors import InternalError


class Held:
    """What one sequence holds."""

    __slots__ = ("length", "prompt", "shared")

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = prompt
        """Tokens that it was opened with: their pages may be shared."""
        self.length = 0
        """Tokens computed."""
        self.shared: list[int] = []
        """Keys of its leading pages that are."""


class PagePool:
    def __init__(self, total: int, page_size: int, prefix_cache: bool = False) -> None:
        self.total = total
        self.used = 0
        """Pages that some sequence holds."""
        self.hits = self.evictions = 0
        """Tokens found in the prefix cache; pages that had to make room."""
        self._size = page_size
        self._caching = prefix_cache
        self._references: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Pages that can be had now, those included that only the prefix cache keeps."""
        return self.total - self.used

    def open(self, tokens: Sequence[int]) -> Held:
        """A sequence with the longest known prefix, whole pages, at least one token short of all."""
        held = Held(tokens)
        if not self._caching:
            return held
        key = 0
        for page in range((len(tokens) - 1) // self._size):
            key = self._key(key, tokens, page)
            if key not in self._references:
                break
            self._hold(key)
            held.shared.append(key)
        held.length = len(held.shared) * self._size
        self.hits += held.length
        return held

    def resize(self, held: Held, length: int) -> None:
        """It holds `length` tokens now. Raises InternalError where the pool does not."""
        if length < len(held.shared) * self._size:
            self._cut(held, length)
        size = self._size
        self.used += -(-length // size) - -(-held.length // size)
        held.length = length
        if self._caching and len(held.shared) * size < len(held.prompt):
            self._share(held)
        if self.used > self.total:
            raise InternalError(f"{self.used} pages are used of {self.total}")
        while self.used + len(self._idle) > self.total:
            key, _ = self._idle.popitem(last=False)
            del self._references[key]
            self.evictions += 1

    def close(self, held: Held) -> None:
        self.used -= -(-held.length // self._size) - len(held.shared)
        for key in reversed(held.shared):  # a chain is evicted from its end
            self._release(key)

    def _share(self, held: Held) -> None:
        """Let others find the prompt's pages that are full by now."""
        key = held.shared[-1] if held.shared else 0
        for page in range(len(held.shared), min(held.length, len(held.prompt)) // self._size):
            key = self._key(key, held.prompt, page)
            if key in self._references:
                self._hold(key)
                self.used -= 1  # its own copy
            else:
                self._references[key] = 1
            held.shared.append(key)

    def _cut(self, held: Held, length: int) -> None:
        """Shared pages behind `length` become its own again, until they are taken from it."""
        while len(held.shared) * self._size > length:
            self._release(held.shared.pop())
            self.used += 1

    def _hold(self, key: int) -> None:
        if not self._references[key]:
            del self._idle[key]
            self.used += 1
        self._references[key] += 1

    def _release(self, key: int) -> None:
        self._references[key] -= 1
        if not self._references[key]:
            self.used -= 1
            self._idle[key] = None

    def _key(self, previous: int, tokens: Sequence[int], page: int) -> int:
        return hash((previous, *tokens[page * self._size : (page + 1) * self._size]))
