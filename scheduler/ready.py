"""Who can take part in the next step, kept up to date as things happen, so that planning does not ask everybody."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping

from scheduler.types import SessionRecord


class ReadyQueue:
    """Sessions that a step can do something for, and those that wait for their draft until a deadline."""

    def __init__(self) -> None:
        self._ready: dict[int, SessionRecord] = {}
        self._waiting: dict[int, SessionRecord] = {}
        self._deadlines: list[tuple[float, int]] = []
        """A heap. An entry counts only while its session still waits for that very deadline."""

    def place(self, record: SessionRecord, now: float) -> None:
        """To be called whenever something has happened to the session."""
        session = record.session
        if record.waits and record.draft_deadline > now:
            self._ready.pop(session, None)
            self._waiting[session] = record
            heapq.heappush(self._deadlines, (record.draft_deadline, session))
            return
        self._waiting.pop(session, None)
        self._ready[session] = record

    def discard(self, session: int) -> None:
        self._ready.pop(session, None)
        self._waiting.pop(session, None)

    def at(self, now: float) -> Collection[SessionRecord]:
        """Those that are ready now. Whoever has just stopped waiting for a draft has been ready since its deadline."""
        while self._deadlines and self._deadlines[0][0] <= now:
            record = self._expired(*heapq.heappop(self._deadlines))
            if record is not None:
                del self._waiting[record.session]
                self._ready[record.session] = record
                record.ready_at = max(record.ready_at, record.draft_deadline)
        return self._ready.values()

    def next_deadline(self) -> float | None:
        """When the first of those who wait for a draft stops waiting."""
        while self._deadlines and self._expired(*self._deadlines[0]) is None:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def _expired(self, deadline: float, session: int) -> SessionRecord | None:
        record = self._waiting.get(session)
        return record if record is not None and record.draft_deadline == deadline else None

    def check_integrity(self, records: Mapping[int, SessionRecord]) -> None:
        """Raises AssertionError unless everybody stands in exactly one place, and the right one."""
        assert self._ready.keys() | self._waiting.keys() == records.keys()
        assert not self._ready.keys() & self._waiting.keys()
        known = set(self._deadlines)
        for session, record in self._waiting.items():
            assert record.waits, record
            assert (record.draft_deadline, session) in known, record
