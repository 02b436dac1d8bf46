"""What one step may still take: tokens and KV pages. Batching policies fill it; it never goes below zero."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.step_time import StepShape
from scheduler.types import PlanItem, SessionRecord


class StepBudget:
    """A step under construction."""

    def __init__(self, tokens: int, free_pages: int, page_size: int) -> None:
        self.tokens = tokens
        self.free_pages = free_pages
        self.items: list[PlanItem] = []
        self._page_size = page_size
        self._most = tokens
        self._cached = 0
        self._pairs = 0
        self._drafted = self._drafted_pairs = 0

    @property
    def drafts(self) -> bool:
        """Whether any drafted token is to be verified."""
        return self._drafted > 0

    @property
    def shape(self) -> StepShape:
        """Of what was taken."""
        return StepShape(self._most - self.tokens, self._cached, self._pairs)

    @property
    def plain(self) -> StepShape:
        """The same without drafts: a token for each that would be verified."""
        return StepShape(self._most - self.tokens - self._drafted, self._cached, self._pairs - self._drafted_pairs)

    def verify(self, record: SessionRecord, spare: int = 0, draft: int | None = None) -> bool:
        """Take a session that has one token to decode from, with as much of its draft as it was granted, is not doubtful and
        fits, or at most `draft` tokens of it. `spare` tokens of the step stay for others."""
        behind = record.known - record.computed
        left = self.tokens - spare - behind
        drafted = record.drafted - record.doubtful
        if drafted:
            most = record.grant.length  # 0 in LOCAL
            if draft is not None and draft < most:
                most = draft
            if most < drafted:
                drafted = most
        if left < 0:
            return False
        if drafted:
            drafted = min(drafted, left, self._room(record) - behind)
        return drafted >= 0 and self._take(record, behind, drafted, True)

    def decode(self, records: Sequence[SessionRecord]) -> bool:
        """Take all of these sessions, each with nothing but the token to decode from; or none, where not all fit."""
        size, count = self._page_size, len(records)
        lengths = [record.computed for record in records]
        grown = len([1 for length in lengths if not length % size])
        if count > self.tokens or grown > self.free_pages:
            return False
        self.tokens -= count
        self.free_pages -= grown
        cached = sum(lengths)
        self._cached += cached
        self._pairs += cached + count
        self.items += [record.decode for record in records]
        return True

    def prefill(self, record: SessionRecord, chunk: int | None = None) -> bool:
        """Take the next chunk of a session's prefill: as many tokens as are left, and pages allow, or at most `chunk`."""
        behind = record.known - record.computed
        feed = min(behind, self.tokens, self._room(record))
        if chunk is not None:
            feed = min(feed, chunk)
        return feed > 0 and self._take(record, feed, 0, feed == behind)

    def add_alternatives(self, place: int, record: SessionRecord) -> None:
        """Put what a session was granted of the alternatives that wait, as far as it fits, beside its draft at `place`."""
        item = self.items[place]
        left = -(record.computed + item.tokens) % self._page_size  # of its last page
        count = min(record.alternatives, record.grant.alternatives, self.tokens)
        count = min(count, left + self.free_pages * self._page_size)
        self.tokens -= count
        self.free_pages -= -(-max(0, count - left) // self._page_size)
        pairs = count * (record.computed + 2 * item.tokens + count)
        self._pairs += pairs
        self._drafted += count
        self._drafted_pairs += pairs
        self.items[place] = item._replace(alternatives=count)

    def fits(self, record: SessionRecord) -> bool:
        """Whether there are pages for all that it waits to have computed."""
        return self._room(record) >= record.known - record.computed

    def _room(self, record: SessionRecord) -> int:
        """Tokens that fit into the session's last page and the free ones."""
        held = -(-record.computed // self._page_size)
        return (held + self.free_pages) * self._page_size - record.computed

    def _take(self, record: SessionRecord, feed: int, draft: int, sample: bool) -> bool:
        computed, size = record.computed, self._page_size
        tokens = feed + draft
        grown = -(-(computed + tokens) // size) + -computed // size
        if tokens > self.tokens or grown > self.free_pages:
            return False
        self.tokens -= tokens
        self.free_pages -= grown
        self._cached += computed
        pairs = tokens * (computed + tokens)
        self._pairs += pairs
        if draft:
            self._drafted += draft
            self._drafted_pairs += pairs - feed * (computed + feed)
        plain = tokens == 1 and sample
        self.items.append(record.decode if plain else PlanItem(record.session, feed, draft, sample))
        return True
