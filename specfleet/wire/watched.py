"""What is read from files and may change while a daemon runs: certificates, tokens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from specfleet.core.errors import ConfigurationError

log = logging.getLogger(__name__)
T = TypeVar("T")
Stamp = tuple[tuple[int, int, int], ...]


class Watched(Generic[T]):
    """A value made from files, made again by `get` when one of them has changed.

    What cannot be used then (a key that is still to follow its certificate, a line with a typing error) is logged once, and
    the value that was good stays until the files change again. Safe to call from any thread.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """`read` raises ConfigurationError for what cannot be used; so does this."""
        self._paths = tuple(paths)
        self._read = read
        self._lock = threading.Lock()
        self._stamp = self._present()
        self._value = read()

    def get(self) -> T:
        with self._lock:
            stamp = self._present()
            if stamp == self._stamp:
                return self._value
            names = ",".join(map(str, self._paths))
            try:
                value = self._read()
            except ConfigurationError as error:
                log.error("changed files cannot be used", extra={"files": names, "error": error.message})
            else:
                if stamp != self._present():
                    return self._value  # they are just being written; next time
                self._value = value
                log.info("files read again", extra={"files": names})
            self._stamp = stamp
            return self._value

    def _present(self) -> Stamp:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, int, int]:
    """Changes whenever the file does, a link that is pointed elsewhere included."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def read_bytes(path: Path) -> bytes:
    """The file's content. Raises ConfigurationError naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}") from None
