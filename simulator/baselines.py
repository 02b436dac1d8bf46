"""What is compared: a speculation policy, a batching policy, and for baselines a verifier that waits as theirs do.

    fair-goodput, fixed:4, awc, …   a speculation policy of the scheduler, batched as `slo` does
    NAME+BATCHING                   the same, batched as `fifo` or `length-aware` does
    centralized                     target-only, continuous batching, no drafters
    sled, sled:K                    SLED: K drafted tokens (4) in every round, first come first served, static batches of 8
    barrier, barrier:C              GoodSpeed's global round: every step waits for everybody's draft; C tokens (20) shared out

The last two are no flags of a verifier: waiting for others is what they get wrong, and they are here to show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from scheduler import Plan, Scheduler, SchedulerConfig, batching, speculation
from scheduler.step_time import StepTimeModel
from scheduler.types import SessionRecord
from scheduler.view import View
from specfleet.core.errors import ConfigurationError
from specfleet.core.types import Mode
from specfleet.core.words import nearest

STATIC_BATCH = 8
"""Sessions in SLED's batch, no more and, as long as so many are open, no fewer."""
STATIC_WAIT = 0.05
"""Seconds that a static batch waits to be full."""


@dataclass(frozen=True, slots=True)
class Policy:
    name: str
    speculation: str
    batching: str = "slo"
    drafters: bool = True
    """False: nobody drafts, whatever their machines can do."""
    ahead: bool = True
    """Drafters go on while the verdict is on its way."""
    scheduler: Callable[[SchedulerConfig], Scheduler] = Scheduler


class StaticBatches(Scheduler):
    """Waits until a batch is full, or its first member has waited for long. Who comes while it runs is in the next one."""

    def plan(self, now: float, free_pages: int) -> Plan:
        ready = self._queue.at(now)
        if 0 < len(ready) < min(STATIC_BATCH, len(self)):
            full_at = min(record.ready_at for record in ready) + STATIC_WAIT
            if now < full_at:
                return Plan(wake_at=full_at)
        plan = super().plan(now, free_pages)
        items = plan.items[:STATIC_BATCH]
        return replace(plan, items=items, seconds=self.step_time.predict(self._shape(items))) if items else plan


class GlobalRounds(Scheduler):
    """Waits until everybody's draft is there; a step that cannot hold them all is followed by one for the rest."""

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config)
        self._round: set[int] = set()
        """Sessions that this round still owes a verdict."""

    def plan(self, now: float, free_pages: int) -> Plan:
        ready = self._queue.at(now)
        self._round &= {record.session for record in ready}
        if not self._round:
            if len(ready) < len(self):
                return Plan(wake_at=self._queue.next_deadline())
            self._round = {record.session for record in ready}
        plan = super().plan(now, free_pages)
        self._round -= {item.session for item in plan.items}
        return plan

    def _place(self, records: Iterable[SessionRecord], now: float) -> None:
        for record in records:
            if record.grant.mode is Mode.ROUND:  # however long it usually takes
                record.draft_deadline = now + self.config.draft_wait_seconds
            self._queue.place(record, now)


BASELINES = ("centralized", "sled", "barrier")


def policy(text: str, name: str = "") -> Policy:
    """A policy from what `--policy` or a configuration says.

    Raises:
        ConfigurationError: to be read after "must be", naming the nearest there is.
    """
    spoken, _, batched = text.partition("+")
    kind, _, argument = spoken.partition(":")
    known = (*speculation.POLICIES, *BASELINES)
    if kind not in known:
        raise ConfigurationError(f"one of {', '.join(known)}{nearest(kind, known)}")
    if batched and batched not in batching.POLICIES:
        raise ConfigurationError(
            f"{spoken}+ one of {', '.join(batching.POLICIES)}{nearest(batched, batching.POLICIES)}"
        )
    if kind in BASELINES:
        if batched:
            raise ConfigurationError(f"{spoken}, for {kind} batches in its own way")
        return _baseline(kind, argument, name or text)
    _checked(spoken)
    return Policy(name or text, spoken, batched or "slo")


def _baseline(kind: str, argument: str, name: str) -> Policy:
    if kind == "centralized":
        if argument:
            raise ConfigurationError("centralized, which takes no argument")
        return Policy(name, "none", "fifo", drafters=False)
    if kind == "sled":
        return Policy(name, _checked(f"fixed:{argument or 4}"), "fifo", ahead=False, scheduler=StaticBatches)
    return Policy(name, _checked(f"goodspeed:{argument or 20}"), "fifo", ahead=False, scheduler=GlobalRounds)


def _checked(text: str) -> str:
    try:
        speculation.build(text, View(StepTimeModel()), np.random.default_rng(0))
    except ConfigurationError as error:
        raise ConfigurationError(f"something else: {error}") from None
    return text
