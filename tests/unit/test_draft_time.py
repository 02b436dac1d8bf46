"""The draft profile: what it says between and beyond its batches, its file, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.draft_time import DraftProfile
from specfleet.core.errors import ConfigurationError

PROFILE = DraftProfile((1, 2, 4, 8), (0.001, 0.0012, 0.0016, 0.0024), "a machine; a model")


def test_it_is_linear_between_batches_and_beyond() -> None:
    """What was measured is returned as it was; between and beyond it goes on straight."""
    assert [0.001, 0.0014, 0.0024, 0.004] == pytest.approx([PROFILE.at(batch) for batch in (1, 3, 8, 16)])
    assert 0.001 == DraftProfile((2,), (0.001,)).at(16)


def test_more_sequences_are_never_faster_beyond_the_last_batch() -> None:
    """A last batch that happened to be faster than the one before does not go on falling, to zero and below."""
    assert 0.001 == DraftProfile((1, 8), (0.002, 0.001)).at(1000)


def test_a_saved_profile_loads(tmp_path: Path) -> None:
    PROFILE.save(tmp_path / "draft.json")
    assert PROFILE == DraftProfile.load(tmp_path / "draft.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no draft profile"),
        ("[1]", "is no draft profile"),
        ('{"fixed": 1, "per_token": 2}', "is no draft profile"),
        ('{"batches": [1, 2], "seconds_per_token": [0.1]}', "2 batches and 1 seconds_per_token"),
        ('{"batches": [], "seconds_per_token": []}', "at least 1"),
        ('{"batches": [2, 1], "seconds_per_token": [0.1, 0.1]}', "rising"),
        ('{"batches": [0, 1], "seconds_per_token": [0.1, 0.1]}', "from 1 on"),
        ('{"batches": [1.5], "seconds_per_token": [0.1]}', "whole numbers"),
        ('{"batches": [1], "seconds_per_token": [0.0]}', "above 0"),
        ('{"batches": [1], "seconds_per_token": [NaN]}', "above 0"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """In one sentence that says what is wrong."""
    file = tmp_path / "draft.json"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        DraftProfile.load(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read profile .*none\.json"):
        DraftProfile.load(tmp_path / "none.json")
