"""SIGTERM and SIGINT as one event that a daemon waits for. A second signal ends the process at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


def stop_requested() -> asyncio.Event:
    """An event that is set by the first SIGTERM or SIGINT. Call it from the running loop's thread."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """While the block runs Ctrl-C ends the process at once; a shell sees exit code 130. For what an exception does not end:
    torch's import, where it may be lost, what holds up the event loop, a virtual clock. In the main thread only."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
