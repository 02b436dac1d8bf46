"""A short pause for a draft that is almost there, although somebody is ready.

A step costs its fixed part c0 whoever is in it. A draft that comes when a step has just begun waits for the end of that step,
and then its own step costs c0 once more; where few are served, two of them keep missing each other for ever. A disk scheduler
that waits a moment for the reader it has just served knows the same thing (Iyer and Druschel 2001, anticipatory scheduling).

Waiting for the first j drafts, the last of them in d seconds, brings each of those c0 - d, and costs everybody who is ready d.
Both in shares of what a session waits for a verdict anyway, which is what they cost or bring in log goodput.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from scheduler.ready import Ready
from scheduler.types import SessionRecord

MOST = 32
"""With more than so many who wait or are ready steps are well filled, and asking everybody would take time."""
NEAR = 0.5
"""Nobody waits for a draft that takes more than this share of c0 from verdict to draft. With such drafters two groups in turn,
one of which drafts while the other is verified, are better than one group and an idle verifier."""
LATE = 0.25
"""A draft may take so much longer than it was expected to before nobody waits for it."""


def worth_waiting(ready: Ready, waiting: Collection[SessionRecord], now: float, fixed: float) -> float | None:
    """Until when the step should wait; None to begin now. `fixed` seconds are a step's c0."""
    if not waiting or len(waiting) > MOST or len(ready) > MOST:
        return None
    near = [record for record in waiting if _usual(record) < NEAR * fixed]
    if not near:
        return None
    coming = sorted((_comes_in(record, now), record.session, record) for record in near)
    cost = sum(_weight(record, fixed) for record in ready)
    joining = best = 0.0
    until = None
    for seconds, _, record in coming:
        if seconds >= fixed:
            break
        weight = _weight(record, fixed)
        joining += weight
        gain = joining * (fixed - seconds) - cost * seconds
        if gain > best:
            best, until = gain, now + min(fixed, _given_up_in(record, now))
    return until


def _usual(record: SessionRecord) -> float:
    """Seconds from a verdict to the draft that answers it; infinite where nobody knows."""
    each, trip = record.draft_seconds.value, record.round_trip.value
    if not each or not trip or not record.told_at:
        return math.inf
    return trip + each * max(0, record.grant.length - record.drafted)


def _comes_in(record: SessionRecord, now: float) -> float:
    """Seconds until its draft should be there."""
    soon = record.told_at + _usual(record) - now
    return soon if soon > 0.0 else _given_up_in(record, now)


def _given_up_in(record: SessionRecord, now: float) -> float:
    """Seconds until nobody waits for its draft any more; infinite where they are over."""
    left = record.told_at + (1.0 + LATE) * _usual(record) - now
    return left if left > 0.0 else math.inf


def _weight(record: SessionRecord, fixed: float) -> float:
    return record.weight / (max(1, record.identity.sessions) * max(record.interval, fixed))
