"""Folders that commands write to."""

from __future__ import annotations

from pathlib import Path

from specfleet.core.errors import ConfigurationError


def made(folder: Path) -> Path:
    """The folder, made if it is not there. Raises ConfigurationError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make the folder {folder}: {error.strerror}") from None
    return folder
