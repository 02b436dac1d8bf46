"""What takes a while says so: one line on standard error, where somebody is there to see it, gone when it is over."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from specfleet.core.signals import ended_by_ctrl_c

PATIENCE_SECONDS = 2.0
"""What is over sooner says nothing."""
_SHOWN_EVERY_SECONDS = 0.2
_WIDTH = 30
_CLEAR = "\r\x1b[K"


@contextmanager
def waiting(label: str) -> Iterator[Callable[[str], None]]:
    """`label … 3 s` while the block runs, from PATIENCE_SECONDS on. Gives a function that changes the label."""
    with _line() as line:
        if line is None:
            yield lambda _: None
            return
        line.text = label
        yield line.relabel


def gauge(share: float) -> str:
    """A bar for a label: how much is done, 0 to 1."""
    return f"[{'#' * int(_WIDTH * share):<{_WIDTH}}] {share:4.0%}"


@contextmanager
def loading(model: str) -> Iterator[Callable[[str], None]]:
    """While a model is loaded: so it is said, but where the hub's own bars say how far a download is; Ctrl-C ends it. Gives a
    function that changes what is said."""
    local = Path(model).expanduser().is_dir()
    with ended_by_ctrl_c(), waiting(f"loading {model}") if local else nullcontext(lambda _: None) as relabel:
        yield relabel


class _Line:
    """Written by a thread of its own, for what it tells of may hold this one."""

    def __init__(self) -> None:
        self.text = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, name="progress", daemon=True)
        self._thread.start()

    def relabel(self, text: str) -> None:
        self.text = text

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _write(self) -> None:
        began = time.monotonic()
        if self._over.wait(PATIENCE_SECONDS):
            return
        try:
            while not self._over.wait(_SHOWN_EVERY_SECONDS):
                sys.stderr.write(f"{_CLEAR}{self.text} … {time.monotonic() - began:.0f} s")
                sys.stderr.flush()
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
        except OSError:
            pass  # a terminal that is gone must not stop what was begun


@contextmanager
def _line() -> Iterator[_Line | None]:
    if not sys.stderr.isatty():
        yield None
        return
    line = _Line()
    try:
        yield line
    finally:
        line.close()
