"""What a speculation policy may look at: everybody's records, and what steps cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.estimators import Smoothed
from scheduler.step_time import StepTimeModel
from scheduler.types import SessionRecord


@dataclass(slots=True)
class View:
    """Shared by the scheduler, which writes it, and its policy, which reads it."""

    step_time: StepTimeModel
    records: Mapping[int, SessionRecord] = field(default_factory=dict)
    step_seconds: Smoothed = field(default_factory=lambda: Smoothed(0.1))
    """Duration of a step, smoothed."""
