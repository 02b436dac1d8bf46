"""The blocking side's door to asyncio: one daemon thread with one event loop for all blocking clients of a process."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Portal:
    """Runs coroutines on its own thread's event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="specfleet-client", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return its result. Interrupting the wait (Ctrl-C) cancels the coroutine."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("a blocking Client cannot be used from its own callbacks; use AsyncClient there")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the thread, at interpreter exit. Waits two seconds at most, so that a program always exits.

        Nothing is cancelled: only daemon threads can still be waiting, and an error there would be noise.
        """
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=2.0)


_lock = threading.Lock()
_shared: Portal | None = None


def portal() -> Portal:
    """The process's portal, started when first asked for."""
    global _shared
    with _lock:
        if _shared is None:
            _shared = Portal()
            atexit.register(_shared.stop)
        return _shared
