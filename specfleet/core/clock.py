"""Time is injected: production passes `time.monotonic`, the simulator's event loop its own `time`, which jumps."""

from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds from an arbitrary start, never running backwards."""
