"""Service classes and shares as they are written in flags, files and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.identities import Share
from specfleet.core.config import describe, load
from specfleet.core.errors import ConfigurationError
from verifier.config import VerifierConfig


def config(**flags: object) -> VerifierConfig:
    return load(VerifierConfig, section="verifier", env={}, flags={"model": "m", **flags})


def test_classes_are_read_and_shown() -> None:
    """Every number is optional; what was said is shown again."""
    one = config(service_class=("chat:ttft=1,tpot=0.05,weight=2", "batch:"))
    chat, batch = one.service_class
    assert ("chat", 1.0, 0.05, 2.0) == (chat.name, chat.ttft_seconds, chat.tpot_seconds, chat.weight)
    assert ("batch", None, None, 1.0) == (batch.name, batch.ttft_seconds, batch.tpot_seconds, batch.weight)
    assert "service_class = chat:ttft=1,tpot=0.05,weight=2, batch:weight=1" in describe(one)


def test_shares_are_read() -> None:
    """An identity may hold colons, as a peer's address does."""
    (one,) = config(share=("ipv4:10.0.0.7:weight=2,sessions=4,tokens-per-minute=600",)).share
    assert ("ipv4:10.0.0.7", Share(2.0, 4, 600.0)) == (one.identity, one.share)


def test_a_file_and_the_environment_say_the_same(tmp_path: Path) -> None:
    """In a file a list of texts; in the environment items are parted by commas, so numbers are by semicolons."""
    file = tmp_path / "fleet.toml"
    file.write_text('[verifier]\nmodel = "m"\nservice_class = ["chat:ttft=1,tpot=0.05"]\n')
    from_file = load(VerifierConfig, section="verifier", env={}, file=file)
    said = {"SPECFLEET_VERIFIER_SERVICE_CLASS": "chat:ttft=1;tpot=0.05", "SPECFLEET_VERIFIER_MODEL": "m"}
    assert from_file.service_class == load(VerifierConfig, section="verifier", env=said).service_class


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"service_class": ("chat:weight=-1",)}, "weight is -1, must be a number above 0"),
        ({"service_class": ("chat:tpot=nan",)}, "tpot is nan, must be a number of seconds above 0"),
        ({"service_class": ("chat",)}, "must be NAME:ttft=X"),
        ({"service_class": ("chat:tpto=1",)}, "'tpto' is unknown; did you mean tpot"),
        ({"service_class": ("a:", "a:")}, "'a' is in it twice"),
        ({"share": ("bob:sessions=0",)}, "sessions is 0, must be at least 1"),
        ({"share": ("bob:sessions=many",)}, "must be sessions=NUMBER"),
        ({"share": ("bob:tokens-per-minute=0",)}, "tokens_per_minute is 0, must be a number above 0"),
    ],
)
def test_what_cannot_be_is_refused(flags: dict[str, object], message: str) -> None:
    """One line that names the value and the limit."""
    with pytest.raises(ConfigurationError) as error:
        config(**flags)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{", '{"fixed": -1, "per_token": 0}', '{"fixed": "x"}', '{"speed": 3}'])
def test_an_unreadable_profile_names_its_file(tmp_path: Path, content: str) -> None:
    """A profile that is none, or says what cannot be, is refused before anything is loaded."""
    from scheduler.step_profile import StepProfile

    file = tmp_path / "profile.json"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=r"step profile|is no step profile"):
        StepProfile.load(file)
    with pytest.raises(ConfigurationError, match="cannot read profile"):
        StepProfile.load(tmp_path / "none.json")
