"""The SDK's types, as a user's strict type checkers see them; docs/sdk.md's examples are users, too."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
USAGE = ROOT / "tests" / "typing" / "sdk_usage.py"


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The code of docs/sdk.md, a file each."""
    folder = tmp_path_factory.mktemp("examples")
    found = []
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sdk.md").read_text(), re.DOTALL)
    ):
        found.append(folder / f"example_{number}.py")
        found[-1].write_text(code)
    assert len(found) >= 3
    return found


def checked(*program: str) -> None:
    found = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_sdk_usage_type_checks(examples: list[Path]) -> None:
    """Right use passes mypy --strict, with the expected types; each wrong use is an error (unused ignores are errors)."""
    checked(sys.executable, "-m", "mypy", "--strict", "tests/typing/sdk_usage.py", *map(str, examples))


def test_pyright_agrees(examples: list[Path]) -> None:
    """In strict mode, where it is installed; it knows no mypy comments, so wrong uses are marked for both."""
    program = shutil.which("pyright", path=str(Path(sys.executable).parent)) or pytest.skip("pyright is not installed")
    ready = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    if ready.returncode != 0:
        pytest.skip("pyright cannot be started here: it fetches itself at its first start")
    checked(
        program,
        "--project",
        str(ROOT / "tests" / "typing"),
        "--pythonpath",
        sys.executable,
        str(USAGE),
        *map(str, examples),
    )
