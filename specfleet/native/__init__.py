"""The scheduler, and what a drafter knows of its guesses, as machine code: the same Python, compiled by mypyc, where somebody
had it compiled (`specfleet native`).

What is compiled lies in the user's cache under a hash of the sources, so that whoever edits one, or installs another version,
runs Python until it is compiled anew. Nothing but time depends on it: both decide the same (tests/congruence/test_native.py).
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

MODULES = (
    "drafter.branch",
    "drafter.early_stop",
    "drafter.ledger",
    "drafter.pace",
    "scheduler.batching.fifo",
    "scheduler.batching.length_aware",
    "scheduler.batching.pause",
    "scheduler.batching.slo",
    "scheduler.budget",
    "scheduler.estimators",
    "scheduler.identities",
    "scheduler.ready",
    "scheduler.scheduler",
    "scheduler.speculation.fair_goodput",
    "scheduler.speculation.governor",
    "scheduler.step_time",
    "scheduler.types",
    "scheduler.view",
)
"""What every step and every guess passes. The rest is asked once a configuration, or waits for numpy or for others."""
PACKAGES = ("drafter", "scheduler", "specfleet/core", "specfleet/native")
"""All that they are compiled from."""
ROOT = Path(__file__).resolve().parents[2]
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
"""Of compiled modules; it names Python, processor and system."""


class Compiled(MetaPathFinder):
    """Finds modules that are compiled, ahead of their sources."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._files.get(fullname)
        return None if file is None else spec_from_file_location(fullname, file)


def source(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


@cache
def folder() -> Path:
    """Where the compiled form of exactly these sources is, or belongs."""
    stamp = hashlib.sha256(SUFFIX.encode())
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            stamp.update(path.read_bytes())
    return _cache() / "specfleet" / "native" / stamp.hexdigest()[:16]


def _cache() -> Path:
    """The user's; where there is no telling who that is, a place that can hold nothing."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return Path(os.devnull)


def is_compiled() -> bool:
    """Whether the compiled form is there, and may be read."""
    try:
        return folder().is_dir()
    except OSError:
        return False


def enable() -> bool:
    """Import compiled modules from now on, if there are any and SPECFLEET_NATIVE is not 0. Returns whether that is so."""
    if any(isinstance(finder, Compiled) for finder in sys.meta_path):
        return True
    if os.environ.get("SPECFLEET_NATIVE") == "0" or not is_compiled():
        return False
    found = {
        ".".join(path.relative_to(folder()).parts).removesuffix(SUFFIX): path for path in folder().rglob(f"*{SUFFIX}")
    }
    sys.meta_path.insert(0, Compiled(found))
    return True
