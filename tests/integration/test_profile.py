"""`specfleet profile` for a drafter against a real verifier."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.draft_time import DraftProfile
from specfleet.cli.main import main
from support.daemons import running, start_verifier
from support.pair import DRAFT, TARGET


def test_a_drafters_profile_against_a_verifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped pair: its acceptance and the best length are in the file, and a table of lengths was printed. The target as
    its own draft model, in all its bits, is always right. A verifier that cannot be reached, and another vocabulary, are one
    line each."""
    out = tmp_path / "draft.json"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Once upon a time"}\n{"prompt": "def add(a, b):"}\n')

    def profile(model: Path, verifier: str, *more: str) -> int:
        arguments = ["--model", str(model), "--drafter", "--verifier", verifier, "--prompts", str(prompts)]
        return main(["profile", *arguments, *more, "--out", str(out), "--seconds", "0.5"])

    with running(start_verifier("--speculation", "none")) as verifier:
        assert 0 == profile(DRAFT, verifier.address)
        found, said = DraftProfile.load(out), capsys.readouterr().out
        assert found.acceptance is not None and 0.1 < found.acceptance < 0.95
        assert found.best_length is not None
        assert found.confidence is not None and 0.2 < found.confidence < 3.0
        assert "tokens a round" in said and f"best length {found.best_length}" in said
        assert 0 == profile(TARGET, verifier.address, "--quantize", "none")
        assert 1.0 == DraftProfile.load(out).acceptance
        capsys.readouterr()
        address = verifier.address
    assert 3 == profile(DRAFT, address)
    (line,) = capsys.readouterr().err.splitlines()
    assert address in line
