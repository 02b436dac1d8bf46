"""`specfleet profile` on a random model of a few kilobytes: the files it writes, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scheduler.draft_time import DraftProfile
from scheduler.step_profile import StepProfile
from specfleet.cli.main import main
from specfleet.engine.testing import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "random"))


def profile(model: str, out: Path, *more: str) -> int:
    return main(["profile", "--model", model, "--out", str(out), "--seconds", "0.5", "--threads", "1", *more])


def test_a_step_profile(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It can be loaded, says where it is from, and a table of measured and fitted times with their error was printed."""
    out = tmp_path / "step.json"
    assert 0 == profile(model, out)
    found = StepProfile.load(out)
    assert 1e-5 < found.fixed + found.per_token < 1.0
    assert re.search(r"threads 1; random in float32; measured \d{4}-\d\d-\d\d for 0.5 s$", found.source)
    printed = capsys.readouterr().out
    assert re.search(r"sequences +new tokens each +context +measured ms +fitted ms +error", printed)
    assert re.search(r"mean absolute percentage error \d+\.\d% over \d+ shapes", printed)
    assert str(out) in printed


def test_a_draft_profile(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It can be loaded, for batches of 1, 2, 4 and 8, and says in how many bits the model was measured."""
    out = tmp_path / "draft.json"
    assert 0 == profile(model, out, "--drafter", "--quantize", "none")
    found = DraftProfile.load(out)
    assert (1, 2, 4, 8) == found.batches
    assert all(1e-6 < seconds < 1.0 for seconds in found.seconds_per_token)
    assert "random in float32" in found.source
    assert "tokens/s in all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "m", "--seconds", "0"), ("--seconds", "0")),
        (("--model", "m", "--threads", "0"), ("--threads", "0")),
        (("--model", "m", "--dtype", "int4"), ("--dtype", "int4", "bfloat16")),
        (("--model", "m", "--out", "{tmp}/none/p.json"), ("--out", "none", "create it")),
        (("--model", "m", "--out", "{tmp}"), ("--out", "directory")),
        (("--model", "{tmp}/nowhere"), ("nowhere",)),
        ((), ("--model",)),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    """One line with the value, exit code 2, and no file."""
    monkeypatch.chdir(tmp_path)
    assert 2 == main(["profile", *(one.format(tmp=tmp_path) for one in arguments)])
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line
    assert [] == list(tmp_path.iterdir())
