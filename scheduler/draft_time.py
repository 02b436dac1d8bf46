"""How long a draft model takes for a token: measured by `specfleet profile --drafter`, read by the simulator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scheduler.profile_file import ProfileFile
from specfleet.core.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class DraftProfile(ProfileFile):
    """Seconds that each of several sequences, drafting together, waits for its next token."""

    KIND = "draft"
    batches: tuple[int, ...]
    """Numbers of sequences, rising."""
    seconds_per_token: tuple[float, ...]
    """One for each of `batches`."""
    source: str = ""
    """Machine and model they were measured on."""
    acceptance: float | None = None
    """Share of a target's own greedy tokens that the model would have guessed; None where no verifier was asked."""
    best_length: int | None = None
    """Speculation length of most tokens per second for one session there; 0 is not to draft."""
    confidence: float | None = None
    """How well the model's confidence told right guesses from wrong ones there: the distance of their mean log-odds, in
    standard deviations; 0 is not at all."""

    def __post_init__(self) -> None:
        # JSON knows lists only.
        object.__setattr__(self, "batches", tuple(self.batches))
        object.__setattr__(self, "seconds_per_token", tuple(self.seconds_per_token))
        if not self.batches or len(self.batches) != len(self.seconds_per_token):
            raise ConfigurationError(
                f"draft profile: {len(self.batches)} batches and {len(self.seconds_per_token)} seconds_per_token, "
                "must be as many, and at least 1"
            )
        rising = all(low < high for low, high in zip((0, *self.batches), self.batches, strict=False))
        if not rising or not all(isinstance(batch, int) for batch in self.batches):
            raise ConfigurationError(
                f"draft profile: batches are {self.batches}, must be whole numbers from 1 on, rising"
            )
        if self.acceptance is not None and not 0.0 <= self.acceptance <= 1.0:
            raise ConfigurationError(f"draft profile: acceptance is {self.acceptance!r}, must be between 0 and 1")
        if self.best_length is not None and not (isinstance(self.best_length, int) and self.best_length >= 0):
            raise ConfigurationError(f"draft profile: best_length is {self.best_length!r}, must be tokens, 0 or more")
        if self.confidence is not None and not 0.0 <= self.confidence < math.inf:
            raise ConfigurationError(
                f"draft profile: confidence is {self.confidence!r}, must be standard deviations, 0 or more"
            )
        for seconds in self.seconds_per_token:
            if not (math.isfinite(seconds) and seconds > 0.0):
                raise ConfigurationError(
                    f"draft profile: seconds_per_token holds {seconds!r}, must be finite numbers of seconds above 0"
                )

    def at(self, batch: int) -> float:
        """Seconds per token with `batch` sequences: linear between what was measured, and beyond as between the last two."""
        batches, seconds = self.batches, self.seconds_per_token
        if batch <= batches[-1] or len(batches) == 1:
            return float(np.interp(batch, batches, seconds))
        slope = (seconds[-1] - seconds[-2]) / (batches[-1] - batches[-2])
        return seconds[-1] + max(0.0, slope) * (batch - batches[-1])
