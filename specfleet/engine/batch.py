"""One step's ragged batch as index tensors: which token sits where, who may look at whom. Built once, used by every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from specfleet.core.step import PAGE_SIZE
from specfleet.engine.tiles import Tiles, cut


class Span(NamedTuple):
    """One sequence's part of a step: `tokens` at places [start, start + len(tokens))."""

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    """The block table, the room for `tokens` included."""
    rows: int
    """How many trailing tokens need logits."""
    leaves: Sequence[int] = ()
    """The last tokens, one for each of these positions, are alternatives to what stands there: a tree's leaves. They see what
    is before their position, and themselves; nobody sees them. A *place* is a token's index in the block table: of all but
    leaves it is the position, too."""

    @property
    def size(self) -> int:
        return len(self.tokens)

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def positions(self) -> list[int]:
        """Of each token, in the text."""
        return [*range(self.start, self.end - len(self.leaves)), *self.leaves]

    @property
    def pages_read(self) -> int:
        return -(-self.end // PAGE_SIZE)


@dataclass(slots=True)
class Group:
    """Sequences of similar shape that share one padded attention call. `queries` and `pages` are maxima over them."""

    members: list[int]
    queries: int
    pages: int
    table: torch.Tensor
    """Pages to gather, int64 (members * pages,), short block tables filled up with page 0 (masked)."""
    span: tuple[int, int] | None
    """(first page, last page + 1) where the one member's pages are neighbours: a view then replaces the gather."""
    single: int | None
    """Position of the query where there is but one: no mask needed then."""
    first: int
    """Token index of the first query."""
    positions: torch.Tensor
    """Absolute position of each padded query, int64 (members, queries)."""
    leaves: tuple[torch.Tensor, torch.Tensor] | None
    """Where some queries are leaves: (the last key each sees of the text, its own key), int64 (members, queries) each."""
    rows: torch.Tensor | None
    """Token index of each padded query, int64 (members * queries,); None where they are simply `first` and on, unpadded."""
    padded_rows: torch.Tensor | None
    """Where `rows` is set: the padded queries that are real, int64 (tokens of the group,), in token order."""
    masks: dict[tuple[int | None, int], torch.Tensor] = field(default_factory=dict)
    """Additive masks by (sliding window, query heads per key head)."""

    def mask(self, window: int | None, share: int, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask (members, 1, share * queries, keys): 0 where a query at position i sees key j, that is where
        i - window < j <= i (of a leaf: j < i, or its own), minus infinity elsewhere. Made by the first layer that asks, shared
        by the others."""
        found = self.masks.get((window, share))
        if found is None:
            keys = torch.arange(self.pages * PAGE_SIZE, device=self.positions.device)
            last, own = self.leaves or (self.positions, None)
            seen = keys <= _by_head(last, share)
            if window is not None:
                seen &= keys > _by_head(self.positions, share) - window
            if own is not None:
                seen |= keys == _by_head(own, share)
            found = torch.where(seen, 0.0, float("-inf")).to(dtype)
            self.masks[window, share] = found
        return found


@dataclass(frozen=True, slots=True)
class Walk:
    """A step as one walks over it on the CPU: each token with the keys that it sees, where they are, nothing padded."""

    table: np.ndarray
    """int64 (5, tokens): index in the step, where in `pages` the sequence's block table begins, position, last place of the
    text that it sees, and its own place where that is another one (of leaves), else -1."""
    pages: np.ndarray
    """int64: the block tables, one behind the other."""
    groups: list[Group]
    """The sequences that are left out for having too many tokens."""


class StepBatch:
    """Everything the model and the attention back ends need to know of one step.

    token_ids, position_ids: int64 (1, tokens). slots: int64 (tokens,). logit_rows: int64 (rows,), sequences in order.
    """

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        self.spans = spans
        self.device = device
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: list[int] = []
        self.offsets = [0]
        self.trees = False
        """Whether some queries do not see all that lies before them."""
        for span in spans:
            own, start, pages, count, leaves = span
            tokens += own
            end = len(tokens)
            self.offsets.append(end)
            rows += range(end - count, end)
            if len(own) == 1 and not leaves:  # most that a fleet does
                positions.append(start)
                slots.append(pages[start // PAGE_SIZE] * PAGE_SIZE + start % PAGE_SIZE)
                continue
            positions += span.positions
            _extend_slots(slots, span)
            self.trees = self.trees or bool(leaves)
        self.tokens = n = len(tokens)
        packed = _to_tensor([*tokens, *positions, *slots, *rows], device)  # one transfer
        self.token_ids, self.position_ids = packed[None, :n], packed[None, n : 2 * n]
        self.slots, self.logit_rows = packed[2 * n : 3 * n], packed[3 * n :]
        self._tiles: dict[int, Tiles] = {}
        self._walks: dict[int, Walk] = {}

    @cached_property
    def groups(self) -> list[Group]:
        """The sequences grouped for padded attention."""
        return [self._group(members) for members in group_by_shape(self.spans)]

    @cached_property
    def cumulative_queries(self) -> torch.Tensor:
        """int32 (sequences + 1,)."""
        return torch.tensor(self.offsets, dtype=torch.int32, device=self.device)

    @cached_property
    def key_counts(self) -> torch.Tensor:
        """int32 (sequences,): keys of each sequence, this step's included."""
        return torch.tensor([span.end for span in self.spans], dtype=torch.int32, device=self.device)

    @cached_property
    def block_tables(self) -> torch.Tensor:
        """int32 (sequences, most pages), short ones filled up with page 0."""
        table = [_padded(span.pages[: span.pages_read], self.most_pages) for span in self.spans]
        return torch.tensor(table, dtype=torch.int32, device=self.device)

    @cached_property
    def places(self) -> torch.Tensor:
        """int64 (tokens,): each token's index in its sequence's block table."""
        return _to_tensor([place for span in self.spans for place in range(span.start, span.end)], self.device)

    @cached_property
    def pages(self) -> torch.Tensor:
        """int64: the block tables, as far as they are read, one behind the other."""
        return _to_tensor([page for span in self.spans for page in span.pages[: span.pages_read]], self.device)

    def tiles(self, queries: int) -> Tiles:
        """The step in tiles of up to `queries`. Made by the first layer that asks, shared by the others."""
        found = self._tiles.get(queries)
        if found is None:
            table = cut([span.size for span in self.spans], [span.pages_read for span in self.spans], queries)
            found = self._tiles[queries] = Tiles(
                table=torch.from_numpy(table).to(self.device),
                positions=self.position_ids[0],
                places=self.places,
                pages=self.pages,
                queries=queries,
                most_keys=self.most_pages * PAGE_SIZE,
            )
        return found

    def walk(self, most: int) -> Walk:
        """Over the sequences with up to `most` tokens here. Made by the first layer that asks, shared by the others."""
        found = self._walks.get(most)
        if found is None:
            long = [i for i, span in enumerate(self.spans) if span.size > most]
            groups = group_by_shape([self.spans[i] for i in long])
            found = self._walks[most] = Walk(
                table=self._table(most),
                pages=self.pages.numpy(),
                groups=[self._group([long[i] for i in members]) for members in groups],
            )
        return found

    def _table(self, most: int) -> np.ndarray:
        rows: list[int] = []
        begins: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        own: list[int] = []
        begin = 0
        for span, offset in zip(self.spans, self.offsets, strict=False):
            if span.size <= most:
                text = span.end - len(span.leaves)
                rows.extend(range(offset, offset + span.size))
                begins.extend([begin] * span.size)
                positions.extend(span.positions)
                last.extend([*range(span.start, text), *(position - 1 for position in span.leaves)])
                own.extend([*[-1] * (text - span.start), *range(text, span.end)])
            begin += span.pages_read
        return np.array([rows, begins, positions, last, own], dtype=np.int64)

    @property
    def most_queries(self) -> int:
        return max(span.size for span in self.spans)

    @property
    def most_pages(self) -> int:
        return max(span.pages_read for span in self.spans)

    def _group(self, members: list[int]) -> Group:
        spans = [self.spans[i] for i in members]
        queries = max(span.size for span in spans)
        pages = max(span.pages_read for span in spans)
        table: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        real: list[int] = []
        for k, (i, span) in enumerate(zip(members, spans, strict=True)):
            table += _padded(span.pages[: span.pages_read], pages)
            positions += _padded(span.positions, queries)
            rows += _padded(range(self.offsets[i], self.offsets[i + 1]), queries)
            real.extend(range(k * queries, k * queries + span.size))
        m, first = len(members), rows[0]
        in_order = rows == list(range(first, first + m * queries))
        neighbours = m == 1 and table == list(range(table[0], table[0] + pages))
        packed = _to_tensor([*table, *positions, *([] if in_order else [*rows, *real])], self.device)
        at = [0, m * pages, m * (pages + queries), m * (pages + 2 * queries)]
        return Group(
            members=members,
            queries=queries,
            pages=pages,
            table=packed[: at[1]],
            span=(table[0], table[0] + pages) if neighbours else None,
            single=spans[0].start if m == queries == 1 and not spans[0].leaves else None,
            first=first,
            positions=packed[at[1] : at[2]].view(m, queries),
            leaves=_leaves(spans, queries, self.device) if any(span.leaves for span in spans) else None,
            rows=None if in_order else packed[at[2] : at[3]],
            padded_rows=None if in_order else packed[at[3] :],
        )


def group_by_shape(spans: Sequence[Span], waste: float = 2.0) -> list[list[int]]:
    """Split the sequences into groups whose padded attention costs at most `waste` times the unpadded one.

    Cost of a padded group: members * (most queries) * (most pages) against the sum of queries * pages. Sequences are
    taken in order of (queries, pages), so a group's padding is bounded by its first and last member.
    """
    order = sorted(range(len(spans)), key=lambda i: (spans[i].size, spans[i].pages_read))
    groups: list[list[int]] = []
    needed = most_queries = most_pages = 0
    for i in order:
        span = spans[i]
        queries, pages = max(most_queries, span.size), max(most_pages, span.pages_read)
        own = span.size * span.pages_read
        if groups and (len(groups[-1]) + 1) * queries * pages <= waste * (needed + own):
            groups[-1].append(i)
            needed, most_queries, most_pages = needed + own, queries, pages
        else:
            groups.append([i])
            needed, most_queries, most_pages = own, span.size, span.pages_read
    for group in groups:
        group.sort()
    return groups


def fixed_passes(spans: Sequence[Span], size: int, scratch: Sequence[int]) -> list[list[Span]]:
    """Cut a step into passes of exactly `size` tokens, so that every matrix product has one shape and a token's result does
    not depend on what else is in the step. The last pass is filled up with a sequence of its own on `scratch` pages."""
    passes: list[list[Span]] = [[]]
    room = size
    for span in spans:
        at = 0
        while at < span.size:
            end = min(span.size, at + room)
            rows = max(0, end - max(at, span.size - span.rows))
            plain = span.size - len(span.leaves)
            leaves = span.leaves[max(0, at - plain) : max(0, end - plain)]
            passes[-1].append(Span(span.tokens[at:end], span.start + at, span.pages, rows, leaves))
            room -= end - at
            at = end
            if room == 0:
                passes.append([])
                room = size
    if room == size:
        passes.pop()
    else:
        passes[-1].append(Span([0] * room, 0, scratch, 0))
    return passes


def _extend_slots(slots: list[int], span: Span) -> None:
    """Append the pool slots of a span's tokens, page by page."""
    position = span.start
    while position < span.end:
        stop = min(span.end, position - position % PAGE_SIZE + PAGE_SIZE)
        first = span.pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE
        slots.extend(range(first, first + stop - position))
        position = stop


def _leaves(spans: Sequence[Span], queries: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """`Group.leaves`: other tokens see the text up to themselves."""
    last, own = [], []
    for span in spans:
        plain = range(span.start, span.end - len(span.leaves))
        last.append(_padded([*plain, *(position - 1 for position in span.leaves)], queries))
        own.append(_padded(range(span.start, span.end), queries))
    return torch.tensor(last, device=device), torch.tensor(own, device=device)


def _by_head(of_query: torch.Tensor, share: int) -> torch.Tensor:
    """(members, queries) as (members, 1, share * queries, 1), for each query head of a key head."""
    return of_query.repeat(1, share)[:, None, :, None]


def _padded(values: Sequence[int], length: int) -> list[int]:
    return [*values, *[0] * (length - len(values))]


def _to_tensor(values: list[int], device: torch.device) -> torch.Tensor:
    """int64. By way of numpy, which reads lists several times faster than torch."""
    return torch.from_numpy(np.array(values, dtype=np.int64)).to(device)
