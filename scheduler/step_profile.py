"""What a step costs on a machine, term by term: measured by `specfleet profile`, read by verifiers and the simulator."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from scheduler.profile_file import ProfileFile
from specfleet.core.errors import ConfigurationError

Terms = tuple[float, float, float, float]
"""Of fixed, per_token, per_cached, per_pair. Four plain numbers, not an array: every step asks for them a few times, and
calling numpy for four numbers costs ten times what they do."""


@dataclass(frozen=True, slots=True)
class StepProfile(ProfileFile):
    """Coefficients in seconds, as `specfleet profile` measures them."""

    KIND = "step"
    fixed: float
    per_token: float
    per_cached: float = 0.0
    per_pair: float = 0.0
    source: str = ""
    """Machine and model they were measured on."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "source" and not (math.isfinite(value) and value >= 0.0):
                raise ConfigurationError(
                    f"step profile: {name} is {value!r}, must be a finite number of seconds, 0 or more"
                )
        if self.fixed + self.per_token <= 0.0:
            raise ConfigurationError("step profile: fixed and per_token are both 0, a step must take some time")

    @property
    def coefficients(self) -> Terms:
        return self.fixed, self.per_token, self.per_cached, self.per_pair


UNPROFILED = StepProfile(fixed=0.02, per_token=1e-4, per_cached=1e-7, per_pair=1e-8, source="a guess")
"""Where nobody has measured anything: steps soon say better."""
