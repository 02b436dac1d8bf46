"""One step's ragged batch as index tensors: which token sits where, who may look at whom. Built once, used by every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from specfleet.engine.pages import PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's part of a step: `tokens` at positions [start, start + len(tokens))."""

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    """The block table, the room for `tokens` included."""
    rows: int
    """How many trailing tokens need logits."""

    @property
    def count(self) -> int:
        return len(self.tokens)

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

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
    rows: torch.Tensor | None
    """Token index of each padded query, int64 (members * queries,); None where the tokens are [first, first + n) unpadded."""
    first: int
    positions: torch.Tensor
    """Absolute position of each padded query, int64 (members, queries)."""
    padded_rows: torch.Tensor | None = None
    """Where `rows` is set: the padded queries that are real, int64 (tokens of the group,), in token order."""
    masks: dict[tuple[int | None, int], torch.Tensor] = field(default_factory=dict)
    """Additive masks by (sliding window, query heads per key head)."""

    def mask(self, window: int | None, share: int, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask (members, 1, share * queries, keys): 0 where a query at position i sees key j, that is where
        i - window < j <= i, minus infinity elsewhere. Made by the first layer that asks, shared by the others."""
        found = self.masks.get((window, share))
        if found is None:
            keys = torch.arange(self.pages * PAGE_SIZE, device=self.positions.device)
            position = self.positions[:, :, None]
            hidden = keys > position
            if window is not None:
                hidden |= keys <= position - window
            found = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
            found = found.repeat(1, share, 1)[:, None]
            self.masks[window, share] = found
        return found


class StepBatch:
    """Everything the model and the attention back ends need to know of one step.

    token_ids, position_ids: int64 (1, tokens). slots: int64 (tokens,). logit_rows: int64 (rows,), sequences in order.
    """

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        self.spans = spans
        self.device = device
        counts = np.array([span.count for span in spans])
        self.offsets = np.concatenate(([0], np.cumsum(counts)))
        self.tokens = int(self.offsets[-1])
        positions = np.concatenate([np.arange(span.start, span.end) for span in spans])
        slots = np.concatenate([_slots(span) for span in spans])
        tokens = np.concatenate([np.asarray(span.tokens, dtype=np.int64) for span in spans])
        rows = np.concatenate(
            [np.arange(end - span.rows, end) for span, end in zip(spans, self.offsets[1:], strict=True)]
        )
        packed = torch.from_numpy(np.concatenate([tokens, positions, slots, rows])).to(device)
        n = self.tokens
        self.token_ids, self.position_ids = packed[:n][None], packed[n : 2 * n][None]
        self.slots, self.logit_rows = packed[2 * n : 3 * n], packed[3 * n :]

    @cached_property
    def groups(self) -> list[Group]:
        """The sequences grouped for padded attention."""
        return [self._group(members) for members in group_by_shape(self.spans)]

    @cached_property
    def cumulative_queries(self) -> torch.Tensor:
        """int32 (sequences + 1,)."""
        return torch.from_numpy(self.offsets.astype(np.int32)).to(self.device)

    @cached_property
    def key_counts(self) -> torch.Tensor:
        """int32 (sequences,): keys of each sequence, this step's included."""
        return torch.tensor([span.end for span in self.spans], dtype=torch.int32, device=self.device)

    @cached_property
    def block_tables(self) -> torch.Tensor:
        """int32 (sequences, most pages), short ones filled up with page 0."""
        width = self.most_pages
        table = np.zeros((len(self.spans), width), dtype=np.int32)
        for i, span in enumerate(self.spans):
            table[i, : span.pages_read] = span.pages[: span.pages_read]
        return torch.from_numpy(table).to(self.device)

    @property
    def most_queries(self) -> int:
        return max(span.count for span in self.spans)

    @property
    def most_pages(self) -> int:
        return max(span.pages_read for span in self.spans)

    def _group(self, members: list[int]) -> Group:
        spans = [self.spans[i] for i in members]
        queries = max(span.count for span in spans)
        pages = max(span.pages_read for span in spans)
        table = np.zeros((len(members), pages), dtype=np.int64)
        positions = np.zeros((len(members), queries), dtype=np.int64)
        rows = np.zeros((len(members), queries), dtype=np.int64)
        real = np.zeros((len(members), queries), dtype=bool)
        for k, (i, span) in enumerate(zip(members, spans, strict=True)):
            table[k, : span.pages_read] = span.pages[: span.pages_read]
            positions[k, : span.count] = np.arange(span.start, span.end)
            rows[k, : span.count] = np.arange(self.offsets[i], self.offsets[i + 1])
            real[k, : span.count] = True
        flat = rows.ravel()
        unpadded = bool(real.all()) and bool((np.diff(flat) == 1).all())
        neighbours = len(members) == 1 and bool((np.diff(table[0]) == 1).all())
        return Group(
            members=members,
            queries=queries,
            pages=pages,
            table=torch.from_numpy(table.ravel()).to(self.device),
            span=(int(table[0, 0]), int(table[0, -1]) + 1) if neighbours else None,
            rows=None if unpadded else torch.from_numpy(flat).to(self.device),
            first=int(flat[0]),
            positions=torch.from_numpy(positions).to(self.device),
            padded_rows=None if unpadded else torch.from_numpy(np.flatnonzero(real.ravel())).to(self.device),
        )


def group_by_shape(spans: Sequence[Span], waste: float = 2.0) -> list[list[int]]:
    """Split the sequences into groups whose padded attention costs at most `waste` times the unpadded one.

    Cost of a padded group: members * (most queries) * (most pages) against the sum of queries * pages. Sequences are
    taken in order of (queries, pages), so a group's padding is bounded by its first and last member.
    """
    order = sorted(range(len(spans)), key=lambda i: (spans[i].count, spans[i].pages_read))
    groups: list[list[int]] = []
    needed = most_queries = most_pages = 0
    for i in order:
        span = spans[i]
        queries, pages = max(most_queries, span.count), max(most_pages, span.pages_read)
        own = span.count * span.pages_read
        if groups and (len(groups[-1]) + 1) * queries * pages <= waste * (needed + own):
            groups[-1].append(i)
            needed, most_queries, most_pages = needed + own, queries, pages
        else:
            groups.append([i])
            needed, most_queries, most_pages = own, span.count, span.pages_read
    for group in groups:
        group.sort()
    return groups


def _slots(span: Span) -> np.ndarray:
    """Pool slots of a span's tokens."""
    positions = np.arange(span.start, span.end)
    first = span.start // PAGE_SIZE
    pages = np.asarray(span.pages[first : span.pages_read], dtype=np.int64)
    return pages[positions // PAGE_SIZE - first] * PAGE_SIZE + positions % PAGE_SIZE
