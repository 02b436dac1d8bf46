"""Who can take part in the next step, kept up to date as things happen, so that planning does not ask everybody."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from operator import attrgetter

from scheduler.identities import Identity
from scheduler.types import ROUND, SessionRecord

READY_AT = attrgetter("ready_at")
STALE = 3
"""More times due than so many a session are cleared of those that count no more."""


class Ready:
    """Sessions that a step can do something for. Those of one identity that decode, and those that prefill, stand in the order
    in which they became ready."""

    def __init__(self) -> None:
        self._records: dict[int, SessionRecord] = {}
        self._decodes: dict[Identity, dict[int, SessionRecord]] = {}
        self._prefills: dict[int, SessionRecord] = {}
        self._targets = 0
        self._weighted = 0
        self._dues: list[tuple[float, int]] = []
        """In order but for what was added since somebody asked. An entry counts only while its session is ready and due at
        that very time."""

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[SessionRecord]:
        return iter(self._records.values())

    def __contains__(self, session: int) -> bool:
        return session in self._records

    @property
    def targets(self) -> int:
        """How many are of a class that promises something."""
        return self._targets

    @property
    def weighted(self) -> int:
        """How many are of a class whose tokens do not count as usual."""
        return self._weighted

    @property
    def prefills(self) -> Mapping[int, SessionRecord]:
        return self._prefills

    @property
    def decodes(self) -> Mapping[Identity, Mapping[int, SessionRecord]]:
        """Those with one token to decode from, by identity."""
        return self._decodes

    def oldest(self) -> SessionRecord:
        """The one that has waited longest. There must be one."""
        first: list[SessionRecord] = []
        for own in (*self._decodes.values(), self._prefills):
            for record in own.values():
                first.append(record)
                break
        return min(first, key=READY_AT)

    def due_before(self, time: float, most: int) -> tuple[list[SessionRecord], float]:
        """Those that are due before `time`, the first `most` of them, earliest first; and when the next one after them is."""
        dues, records = self._dues, self._records
        if len(dues) > STALE * len(records):  # of who is ahead of its pace, whose tokens are due long after they came
            dues[:] = [(record.due, session) for session, record in records.items() if record.due != math.inf]
        dues.sort()  # little is out of order, which sorting makes use of: less than a heap costs to take from and give back
        found: list[SessionRecord] = []
        kept: list[tuple[float, int]] = []
        last, passed, following = None, len(dues), math.inf
        for place, entry in enumerate(dues):
            due, session = entry
            record = records.get(session)
            if record is None or record.due != due or record is last:
                continue
            if due >= time or len(found) == most:
                passed, following = place, due
                break
            last = record
            found.append(record)
            kept.append(entry)
        dues[:passed] = kept
        return found, following

    def add(self, record: SessionRecord) -> None:
        """Last in its order, wherever it stood before."""
        session, identity = record.session, record.identity
        own = self._decodes.get(identity)
        if session not in self._records:
            self._records[session] = record
            self._targets += record.promised
            self._weighted += record.service.weight != 1.0
        elif session in self._prefills:
            del self._prefills[session]
        elif own is not None:
            del own[session]
        if record.due != math.inf:
            self._dues.append((record.due, session))
        if record.known - record.computed > 1:
            self._prefills[session] = record
            if own is not None and not own:
                del self._decodes[identity]
        elif own is None:
            self._decodes[identity] = {session: record}
        else:
            own[session] = record

    def again(self, records: Sequence[SessionRecord]) -> None:
        """`add` for those who are here already, as after most verdicts, with a token to decode from."""
        decodes = self._decodes
        identity: Identity | None = None
        own: dict[int, SessionRecord] = {}
        for record in records:
            session = record.session
            if record.identity is not identity:  # those of one identity mostly come together
                identity = record.identity
                own = decodes.get(identity, {})
            try:
                own[session] = own.pop(session)
            except KeyError:  # it has just been prefilled
                self.add(record)
                identity = None
        if self._targets:
            self._dues += [(record.due, record.session) for record in records if record.due != math.inf]

    def discard(self, session: int) -> None:
        record = self._records.pop(session, None)
        if record is None:
            return
        if record.promised:
            self._targets -= 1
        if record.service.weight != 1.0:
            self._weighted -= 1
        if self._prefills.pop(session, None) is None:
            own = self._decodes[record.identity]
            del own[session]
            if not own:
                del self._decodes[record.identity]


class ReadyQueue:
    """Those that are ready, and those that wait for their draft until a deadline."""

    def __init__(self) -> None:
        self._ready = Ready()
        self._waiting: dict[int, SessionRecord] = {}
        self._deadlines: list[tuple[float, int]] = []
        """A heap. An entry counts only while its session still waits for that very deadline."""

    @property
    def waiting(self) -> Collection[SessionRecord]:
        """Those that wait for their draft."""
        return self._waiting.values()

    def place(self, record: SessionRecord, now: float) -> None:
        """To be called whenever something has happened to the session."""
        session = record.session
        deadline = record.draft_deadline
        if record.grant.mode is ROUND and deadline > now and record.waits:
            self._ready.discard(session)
            self._waiting[session] = record
            heappush(self._deadlines, (deadline, session))
            return
        if self._waiting:
            self._waiting.pop(session, None)
        self._ready.add(record)

    def decoded(self, records: Sequence[SessionRecord]) -> None:
        """`place` for sessions that waited for nobody and do not now, so that they were ready and are again."""
        self._ready.again(records)

    def discard(self, session: int) -> None:
        self._ready.discard(session)
        self._waiting.pop(session, None)

    def at(self, now: float) -> Ready:
        """Those that are ready now. Whoever has just stopped waiting for a draft has been ready since its deadline."""
        deadlines, waiting = self._deadlines, self._waiting
        while deadlines and deadlines[0][0] <= now:
            deadline, session = heappop(deadlines)
            record = waiting.get(session)
            if record is not None and record.draft_deadline == deadline:
                del waiting[session]
                self._ready.add(record)
                record.ready_at = max(record.ready_at, deadline)
        return self._ready

    def next_deadline(self) -> float | None:
        """When the first of those who wait for a draft stops waiting."""
        deadlines = self._deadlines
        while deadlines:
            deadline, session = deadlines[0]
            record = self._waiting.get(session)
            if record is not None and record.draft_deadline == deadline:
                return deadline
            heappop(deadlines)
        return None

    def check_integrity(self, records: Mapping[int, SessionRecord]) -> None:
        """Raises AssertionError unless everybody stands in exactly one place, and the right one."""
        ready = {record.session for record in self._ready}
        assert ready | self._waiting.keys() == records.keys()
        assert not ready & self._waiting.keys()
        decodes = {session for own in self._ready.decodes.values() for session in own}
        assert decodes | self._ready.prefills.keys() == ready
        assert all(records[session].prefilling for session in self._ready.prefills)
        assert not any(records[session].prefilling for session in decodes)
        due = sorted((records[session].due, session) for session in ready if records[session].due != math.inf)
        assert [record.session for record in self._ready.due_before(math.inf, len(records))[0]] == [
            one for _, one in due
        ]
        assert self._ready.targets == sum(records[session].service.targets for session in ready)
        assert self._ready.weighted == sum(records[session].service.weight != 1.0 for session in ready)
        known = set(self._deadlines)
        for session, record in self._waiting.items():
            assert record.waits, record
            assert (record.draft_deadline, session) in known, record
