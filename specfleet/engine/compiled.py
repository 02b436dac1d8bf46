"""How the engine's kernels are compiled for the processor: at the first call, without the interpreter's lock while they run,
and kept beside their file or in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numba import njit

ARITHMETIC = {"reassoc", "contract", "nsz", "arcp"}
"""Sums in any order, so that they are vectors' sums. But NaN stays NaN: what is not finite has to be seen."""


def fast(function: Callable[..., Any]) -> Any:
    """With `ARITHMETIC`."""
    return _kept(function, fastmath=ARITHMETIC)


def exact(function: Callable[..., Any]) -> Any:
    """Float by float as it stands."""
    return _kept(function)


def _stamp() -> str:
    """Of all files with compiled code: what a kernel calls, it holds, and Numba looks at the kernel's own file only. And of
    what torch takes the processor for, on which the tiles depend."""
    texts = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")) if b"numba" in path.read_bytes()]
    processor = torch.backends.cpu.get_cpu_capability().encode()
    return hashlib.sha256(b"".join([processor, *texts])).hexdigest()


_STAMP = _stamp()


def _kept(function: Callable[..., Any], **options: Any) -> Any:
    options |= {"nogil": True, "error_model": "numpy"}
    with contextlib.suppress(RuntimeError):  # nowhere to keep it: then it is compiled at every start
        found = njit(cache=True, **options)(function)
        found._cache._cache_file._source_stamp = _STAMP
        return found
    return njit(**options)(function)
