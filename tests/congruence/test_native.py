"""The scheduler, and what drafters know of their guesses, compiled and as Python: the same decisions, to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specfleet import native
from specfleet.cli.main import main
from specfleet.native.build import compile_modules, missing

PLAY = """
import json, sys
from pathlib import Path
import drafter.early_stop, scheduler.scheduler
from simulator.baselines import policy
from simulator.document import checked
from simulator.figures import figures
from simulator.play import play

found = play(checked(json.loads(sys.argv[1]), Path("fleet.yaml")), policy(sys.argv[2]), 0)
files = [drafter.early_stop.__file__, scheduler.scheduler.__file__]
print(json.dumps({"files": files, "figures": figures(found, 0.0)}))
"""
FLEET = {
    "duration": 4,
    "warm_up": 1,
    "tiers": {
        "near": {
            "count": 6,
            "draft_seconds": 0.004,
            "acceptance": 0.8,
            "confidence": 1.5,
            "network": {"round_trip": 0.004},
        },
        "far": {"count": 4, "acceptance": 0.6, "network": {"up": 0.05, "down": 0.03, "jitter": 0.004}},
        "shared": {"count": 2, "streams": 8, "identity": "tier", "acceptance": {"uniform": [0.3, 0.9]}},
    },
    "verifiers": {"gpu": {"profile": "qwen3-8b-rtx4090", "kv_tokens": 4000, "max_step_tokens": 96}},
    "workload": {
        "closed_loop": {"think_seconds": 0.1},
        "prompt_tokens": {"log_uniform": [8, 400]},
        "output_tokens": {"uniform": [1, 60]},
    },
}
"""More than its steps and its memory hold, so that tokens are shared out and sessions give way."""


def told(name: str, native: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PLAY, json.dumps(FLEET), name],
        env={**os.environ, "SPECFLEET_NATIVE": native},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(missing() is not None, reason=f"compiling needs {missing()}")
@pytest.mark.parametrize("name", ["fair-goodput", "awc", "barrier", "fixed:4+length-aware"])
def test_compiled_decisions_are_the_same(name: str) -> None:
    compile_modules()
    compiled, interpreted = told(name, "1"), told(name, "0")
    assert all(file.endswith(native.SUFFIX) for file in compiled["files"])
    assert all(file.endswith(".py") for file in interpreted["files"])
    assert interpreted["figures"] == compiled["figures"]


def test_other_sources_are_not_served_by_what_was_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = native.folder.__wrapped__()
    for module in native.MODULES:
        copy = tmp_path / native.source(module).relative_to(native.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(native.source(module).read_bytes())
    monkeypatch.setattr(native, "ROOT", tmp_path)
    one = native.folder.__wrapped__()
    changed = native.source("scheduler.budget")
    changed.write_text(changed.read_text() + "\n# another thought\n")
    assert len({before, one, native.folder.__wrapped__()}) == 3


@pytest.fixture
def nothing_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of one's own; returns it."""
    native.folder.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path
    native.folder.cache_clear()


def test_without_a_compiler_it_is_said_and_python_runs(
    nothing_compiled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert main(["native", "--if-possible"]) == 0
    assert "not compiled: compiling needs a C compiler" in capsys.readouterr().err
    assert main(["native"]) == 2
    assert "compiling needs a C compiler" in capsys.readouterr().err
    assert not list(nothing_compiled.iterdir())


def test_a_cache_that_cannot_be_written_is_said(
    nothing_compiled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does anything that imports the scheduler mind."""
    (nothing_compiled / "specfleet").write_text("a file where a folder should be")
    monkeypatch.setattr("specfleet.native.build.missing", lambda: None)
    assert not native.is_compiled()
    assert main(["native"]) == 2
    said = capsys.readouterr().err
    assert "cannot write to" in said and "XDG_CACHE_HOME" in said
    assert main(["native", "--if-possible"]) == 0


def test_a_user_without_a_home_runs_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("could not determine home directory")

    native.folder.cache_clear()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert not native.is_compiled()
    native.folder.cache_clear()


@pytest.mark.skipif(missing() is not None, reason=f"compiling needs {missing()}")
def test_a_compiler_that_fails_is_told_and_leaves_nothing(
    nothing_compiled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python's headers may be missing, for one; make demo goes on all the same."""
    monkeypatch.setattr("specfleet.native.build.MODULES", ("scheduler.nowhere",))
    assert main(["native"]) == 2
    assert "scheduler/nowhere.py" in capsys.readouterr().err
    assert main(["native", "--if-possible"]) == 0
    assert "scheduler/nowhere.py" in capsys.readouterr().err
    assert not list((nothing_compiled / "specfleet" / "native").iterdir())
