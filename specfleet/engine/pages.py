"""Page policy: which page of the KV pool holds which tokens of which sequence. Counts and handles only, no tensors.

A page is 16 consecutive tokens of one sequence. In one of four states:

    free       nobody's, content worthless
    held       in the block tables of `references` sequences (several only where they share a prefix)
    indexed    held, and findable by the hash chain of the tokens up to its end
    cached     indexed and held by nobody: waits in LRU order to be found again, or to be taken when no page is free

                open()/append()                    close()/truncate()
        free ─────────────────► held ──────────────────────────────► free     (not indexed)
                                 │ full, survived a step
                                 ▼
      cached ◄───────────────► indexed                              (open() finds it again; append() elsewhere evicts it)

Hash chain: digest(previous page's digest, 16 token ids), so equal digests mean equal prefixes. A cryptographic hash, since
a collision would hand one user's keys and values to another.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from specfleet.core.errors import InternalError, Overloaded
from specfleet.core.step import PAGE_SIZE

_ROOT = b"specfleet"
_NOT_INDEXED = b""


@dataclass(slots=True)
class SequencePages:
    """What one open sequence holds."""

    tokens: list[int] = field(default_factory=list)
    """The tokens whose keys and values are in the pages, in order."""
    pages: list[int] = field(default_factory=list)
    """The block table: page i holds tokens [16 i, 16 i + 16)."""
    digests: list[bytes] = field(default_factory=list)
    """Chain digests of the leading pages that were offered to the prefix cache."""


@dataclass(slots=True)
class PageCounters:
    """Plain counters since the start; ratios are for whoever reads them."""

    prefix_queries: int = 0
    """Tokens that `open` looked for."""
    prefix_hits: int = 0
    """Tokens that `open` found computed."""
    evictions: int = 0
    """Cached pages that were taken for something else."""
    copies: int = 0
    """Pages copied because a shared one was about to be written."""


class PageTable:
    """Block tables, reference counts and the prefix cache of one KV pool of `total` pages."""

    def __init__(self, total: int, page_size: int = PAGE_SIZE) -> None:
        self.total = total
        self.page_size = page_size
        self.counters = PageCounters()
        self._free = list(range(total - 1, -1, -1))  # popped from the end: low pages first, neighbours together
        self._references = [0] * total
        self._digest = [_NOT_INDEXED] * total
        self._index: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._sequences: dict[int, SequencePages] = {}

    @property
    def free_pages(self) -> int:
        """Pages that can be had now, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def cached_pages(self) -> int:
        """Pages that hold a prefix and are held by nobody."""
        return len(self._cached)

    @property
    def used_pages(self) -> int:
        """Pages in the block table of at least one sequence."""
        return self.total - self.free_pages

    @property
    def sequences(self) -> tuple[int, ...]:
        return tuple(self._sequences)

    def length(self, sequence: int) -> int:
        """Tokens computed so far."""
        return len(self._get(sequence).tokens)

    def tokens(self, sequence: int) -> list[int]:
        """The computed tokens (a copy)."""
        return list(self._get(sequence).tokens)

    def block_table(self, sequence: int) -> list[int]:
        """The sequence's pages in order; not to be changed by the caller."""
        return self._get(sequence).pages

    # Beginning and end of a sequence -------------------------------------------------------------------------------

    def open(self, sequence: int, tokens: Sequence[int]) -> int:
        """Begin a sequence with the longest cached prefix of `tokens`, whole pages only, at least one token short of all
        (somebody has to compute the last token's logits). Returns the prefix's length in tokens."""
        if sequence in self._sequences:
            raise InternalError(f"sequence {sequence} is already open; close it first")
        new = SequencePages()
        digest = _ROOT
        for i in range(max(0, len(tokens) - 1) // self.page_size):
            digest = self._chain(digest, tokens[i * self.page_size : (i + 1) * self.page_size])
            page = self._index.get(digest)
            if page is None:
                break
            self._hold(page)
            new.pages.append(page)
            new.digests.append(digest)
        found = len(new.pages) * self.page_size
        new.tokens.extend(tokens[:found])
        self._sequences[sequence] = new
        self.counters.prefix_queries += len(tokens)
        self.counters.prefix_hits += found
        return found

    def close(self, sequence: int) -> None:
        """Give the pages back; full ones stay findable until their room is needed."""
        self.settle(sequence)
        entry = self._sequences.pop(sequence)
        for page in reversed(entry.pages):  # the last page becomes the oldest: a chain is evicted from its end
            self._release(page)

    # Growing and shrinking -----------------------------------------------------------------------------------------

    def pages_needed(self, sequence: int, count: int) -> int:
        """Pages that appending `count` tokens takes, the copy of a shared last page included."""
        return self._needed(self._get(sequence), count)

    def can_allocate(self, wanted: Iterable[tuple[int, int]]) -> bool:
        """True if appending `count` tokens to each `(sequence, count)` fits into the pool."""
        return sum(self.pages_needed(sequence, count) for sequence, count in wanted) <= self.free_pages

    def append(self, sequence: int, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """Make room for `tokens` and count them as computed. Returns the (source, destination) pages to copy before any
        is written. Raises Overloaded, with nothing changed, if the pages do not suffice."""
        entry = self._get(sequence)
        needed = self._needed(entry, len(tokens))
        if needed and needed > self.free_pages:
            raise Overloaded(
                f"sequence {sequence} needs {needed} KV pages and {self.free_pages} of {self.total} are free"
            )
        if len(entry.digests) < len(entry.tokens) // self.page_size:
            self.settle(sequence)
        copies = self._own_last(entry) if tokens else []
        entry.tokens.extend(tokens)
        while len(entry.pages) * self.page_size < len(entry.tokens):
            entry.pages.append(self._take())
        return copies

    def adopt(self, sequence: int, place: int, position: int) -> tuple[int, int]:
        """The token computed at `place` is the one that stands at `position` of the text, before it. Returns the (source,
        destination) slots to move; what lies behind `position` is to be truncated."""
        entry = self._get(sequence)
        entry.tokens[position] = entry.tokens[place]
        return self._slot(entry, place), self._slot(entry, position)

    def truncate(self, sequence: int, length: int) -> None:
        """Forget the tokens from position `length` on. Nothing is copied here: see `append`."""
        entry = self._get(sequence)
        if not 0 <= length <= len(entry.tokens):
            raise InternalError(f"sequence {sequence} has {len(entry.tokens)} tokens, cannot be cut to {length}")
        del entry.tokens[length:]
        keep = -(-length // self.page_size)
        for page in reversed(entry.pages[keep:]):
            self._release(page)
        del entry.pages[keep:]
        del entry.digests[length // self.page_size :]

    def settle(self, sequence: int) -> None:
        """Offer the full pages of a sequence to the prefix cache. Called when the next step begins or the sequence ends:
        by then a refused draft has been rolled back, so no guess gets into the index."""
        entry = self._get(sequence)
        for i in range(len(entry.digests), len(entry.tokens) // self.page_size):
            previous = entry.digests[-1] if entry.digests else _ROOT
            digest = self._chain(previous, entry.tokens[i * self.page_size : (i + 1) * self.page_size])
            entry.digests.append(digest)
            page = entry.pages[i]
            if digest not in self._index and self._digest[page] == _NOT_INDEXED:
                self._index[digest] = page
                self._digest[page] = digest

    # Integrity -----------------------------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Recount everything from the block tables; raises InternalError at the first difference."""
        held = [0] * self.total
        for sequence, entry in self._sequences.items():
            expect(len(entry.pages) == -(-len(entry.tokens) // self.page_size), f"page count of sequence {sequence}")
            expect(len(entry.digests) <= len(entry.tokens) // self.page_size, f"digests of sequence {sequence}")
            expect(len(set(entry.pages)) == len(entry.pages), f"a page twice in sequence {sequence}")
            for page in entry.pages:
                held[page] += 1
        expect(held == self._references, "reference counts")
        expect(len(set(self._free)) == len(self._free), "a page twice in the free list")
        states = [0] * self.total
        for page in [*self._free, *self._cached]:
            states[page] += 1
        expect(all((state == 1) == (count == 0) for state, count in zip(states, held, strict=True)), "free and held")
        expect(all(self._digest[page] == _NOT_INDEXED for page in self._free), "an indexed page in the free list")
        expect(all(self._digest[page] != _NOT_INDEXED for page in self._cached), "a cached page without a digest")
        expect({digest: page for page, digest in enumerate(self._digest) if digest} == self._index, "prefix index")

    # One page ------------------------------------------------------------------------------------------------------

    def _get(self, sequence: int) -> SequencePages:
        try:
            return self._sequences[sequence]
        except KeyError:
            raise InternalError(f"sequence {sequence} is not open") from None

    def _slot(self, entry: SequencePages, place: int) -> int:
        return entry.pages[place // self.page_size] * self.page_size + place % self.page_size

    def _chain(self, previous: bytes, tokens: Sequence[int]) -> bytes:
        return blake2b(array("q", tokens).tobytes(), digest_size=16, key=previous).digest()

    def _needed(self, entry: SequencePages, count: int) -> int:
        """Pages that appending `count` tokens takes."""
        length, size = len(entry.tokens), self.page_size
        new = -(-(length + count) // size) - len(entry.pages)
        last_is_shared = length % size and count and self._references[entry.pages[-1]] > 1
        return new + 1 if last_is_shared else new

    def _own_last(self, entry: SequencePages) -> list[tuple[int, int]]:
        """Make the partly filled last page writable: copy it if others read it, drop it from the index if only the
        index does (its old content came from tokens that have since been rolled back)."""
        if len(entry.tokens) % self.page_size == 0:
            return []
        page = entry.pages[-1]
        if self._references[page] == 1:
            self._unindex(page)
            return []
        copy = self._take()
        self._release(page)
        entry.pages[-1] = copy
        self.counters.copies += 1
        return [(page, copy)]

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._cached.popitem(last=False)
            self._unindex(page)
            self.counters.evictions += 1
        self._references[page] = 1
        return page

    def _hold(self, page: int) -> None:
        self._references[page] += 1
        self._cached.pop(page, None)

    def _release(self, page: int) -> None:
        self._references[page] -= 1
        if self._references[page]:
            return
        if self._digest[page] == _NOT_INDEXED:
            self._free.append(page)
        else:
            self._cached[page] = None

    def _unindex(self, page: int) -> None:
        if self._digest[page] != _NOT_INDEXED:
            del self._index[self._digest[page]]
            self._digest[page] = _NOT_INDEXED


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise InternalError(f"page table: {what} do not add up")
