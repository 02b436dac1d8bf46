"""How the engine's kernels are compiled for the processor: at the first call, without the interpreter's lock while they run,
and kept beside their file or in the user's cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from numba import njit

ARITHMETIC = {"reassoc", "contract", "nsz", "arcp"}
"""Sums in any order, so that they are vectors' sums. But NaN stays NaN: what is not finite has to be seen."""


def fast(function: Callable[..., Any]) -> Any:
    """With `ARITHMETIC`."""
    return _kept(function, fastmath=ARITHMETIC)


def exact(function: Callable[..., Any]) -> Any:
    """Float by float as it stands."""
    return _kept(function)


def _kept(function: Callable[..., Any], **options: Any) -> Any:
    options |= {"nogil": True, "error_model": "numpy"}
    with contextlib.suppress(RuntimeError):  # nowhere to keep it: then it is compiled at every start
        return njit(cache=True, **options)(function)
    return njit(**options)(function)
