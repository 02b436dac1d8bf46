"""Decisions only: which sessions share the next step, and how far each drafter should guess next.

Nothing here waits, draws time or chance from the outside, or knows a tensor or a socket: time comes in as `now`, randomness
as a named numpy Generator. The same objects decide in production and in the simulator, and the same code runs compiled where
`specfleet native` has compiled it.
"""

# ruff: noqa: E402
from specfleet.native import enable

enable()

from scheduler.admission import Refusal, Request
from scheduler.scheduler import Scheduler, SchedulerConfig
from scheduler.types import ItemOutcome, Outcome, Plan, PlanItem, SessionRecord

__all__ = [
    "ItemOutcome",
    "Outcome",
    "Plan",
    "PlanItem",
    "Refusal",
    "Request",
    "Scheduler",
    "SchedulerConfig",
    "SessionRecord",
]
