"""Structured logs on stderr: one line per event, `key=value` fields from `extra`, readable by people and by logfmt parsers."""

from __future__ import annotations

import json
import logging
import os
import sys

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """`time level logger event key=value …`, a traceback behind it where there is one."""
        fields = "".join(f" {key}={_quoted(value)}" for key, value in vars(record).items() if key not in _STANDARD)
        head = f"{self.formatTime(record)} {record.levelname.lower()} {record.name} {record.getMessage()}{fields}"
        return f"{head}\n{self.formatException(record.exc_info)}" if record.exc_info else head


def _quoted(value: object) -> str:
    text = str(value)
    plain = text and all(c.isprintable() and c not in ' ="' for c in text)
    return text if plain else json.dumps(text, ensure_ascii=False)


class _QuietHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """A full disk or a closed terminal must not stop serving: what cannot be written is dropped."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


def say(line: str) -> None:
    """A line on stdout, for whoever reads it there; dropped, like all that follow, where it cannot be written."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OSError:
        # What is stuck in the buffer would fail again at exit, and become the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def configure(level: str) -> None:
    """Send specfleet's logs to stderr at `level` and above."""
    handler = _QuietHandler(sys.stderr)
    handler.setFormatter(Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
