"""Notices a step that does not end, which no exception would tell of: a device that hangs, a machine that swaps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from verifier.loop import BatchLoop
from verifier.verifier import Verifier

log = logging.getLogger(__name__)

LOOKS = 4
"""A step that is seen again so many times is stuck."""


class Watchdog:
    """While a step lasts longer than `seconds` the verifier is not ready, refuses, and tells everybody to move. Once that step
    has ended, it is ready again.

    It counts its own looks and asks no clock, for when the whole process was stopped for a while no step is to blame.
    """

    def __init__(
        self, loop: BatchLoop, verifier: Verifier, ready: Callable[[bool], Awaitable[None]], seconds: float
    ) -> None:
        self._loop = loop
        self._verifier = verifier
        self._ready = ready
        self._seconds = seconds
        self._stuck = False

    async def run(self) -> None:
        """Until cancelled."""
        seen: float | None = None
        looks = 0
        while True:
            await asyncio.sleep(self._seconds / LOOKS)
            since = self._loop.stepping_since
            looks = looks + 1 if since is not None and since == seen else 0
            seen = since
            if (looks >= LOOKS) != self._stuck:
                self._stuck = not self._stuck
                await self._change()

    async def _change(self) -> None:
        if self._stuck:
            log.error("step is stuck", extra={"seconds": self._seconds, "sessions": self._loop.sessions})
            self._verifier.suspend(f"a step of this verifier has taken more than {self._seconds:g} s")
        else:
            log.warning("step has ended after all")
            self._verifier.resume()
        await self._ready(not self._stuck)
