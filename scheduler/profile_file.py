"""Profiles as JSON files: what `specfleet profile` measured, for the scheduler and the simulator."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Self

from specfleet.core.errors import ConfigurationError


class ProfileFile:
    """For dataclasses whose fields JSON can hold and that check themselves."""

    __slots__ = ()
    KIND: ClassVar[str]
    """What it is a profile of, in errors."""

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")  # type: ignore[call-overload]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ConfigurationError naming the file and what is wrong with it."""
        try:
            return cls(**json.loads(path.read_text()))
        except OSError as error:
            raise ConfigurationError(f"cannot read profile {path}: {error.strerror}") from None
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{path} is no {cls.KIND} profile: {error}") from None
