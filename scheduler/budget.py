"""What one step may still take: tokens and KV pages. Batching policies fill it; it never goes below zero."""

from __future__ import annotations

from scheduler.types import PlanItem, SessionRecord
from specfleet.core.types import Mode


def pages(tokens: int, page_size: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // page_size)


class StepBudget:
    """A step under construction."""

    def __init__(self, tokens: int, free_pages: int, page_size: int) -> None:
        self.tokens = tokens
        self.free_pages = free_pages
        self.items: list[PlanItem] = []
        self._page_size = page_size

    def verify(self, record: SessionRecord, spare: int = 0) -> bool:
        """Take a session that has one token to decode from, with as much of its draft as it was granted and fits. `spare`
        tokens of the step stay for others."""
        draft = min(record.drafted, record.grant.length) if record.grant.mode is not Mode.LOCAL else 0
        draft = min(draft, self.tokens - spare - record.behind, self._room(record) - record.behind)
        return draft >= 0 and self._take(record, PlanItem(record.session, record.behind, draft, sample=True))

    def prefill(self, record: SessionRecord) -> bool:
        """Take the next chunk of a session's prefill: as many tokens as are left, and pages allow."""
        room = self._room(record)
        feed = min(record.behind, self.tokens, room)
        if feed <= 0:
            return False
        return self._take(record, PlanItem(record.session, feed, 0, sample=feed == record.behind))

    def _room(self, record: SessionRecord) -> int:
        """Tokens that fit into the session's last page and the free ones."""
        held = pages(record.computed, self._page_size)
        return (held + self.free_pages) * self._page_size - record.computed

    def _take(self, record: SessionRecord, item: PlanItem) -> bool:
        grown = pages(record.computed + item.tokens, self._page_size) - pages(record.computed, self._page_size)
        if item.tokens > self.tokens or grown > self.free_pages:
            return False
        self.tokens -= item.tokens
        self.free_pages -= grown
        self.items.append(item)
        return True
