"""The SDK's types, as a user's strict mypy sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_sdk_usage_type_checks() -> None:
    """Right use passes mypy --strict, with the expected types; each wrong use is an error (unused ignores are errors)."""
    program = [sys.executable, "-m", "mypy", "--strict", "tests/typing/sdk_usage.py"]

    found = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)

    assert found.returncode == 0, found.stdout + found.stderr
