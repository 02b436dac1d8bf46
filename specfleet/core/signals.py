"""SIGTERM and SIGINT as one event that a daemon waits for. A second signal ends the process at once."""

from __future__ import annotations

import asyncio
import os
import signal


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
