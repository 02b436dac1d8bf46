"""Configuration: file < environment < flags, and errors that name value, limit, source and way out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from specfleet.core.config import HostPort, OptionalHostPort, describe, load
from specfleet.core.errors import ConfigurationError


class Example(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """The model."""
    step_tokens: Annotated[int, Field(ge=16, le=4096)] = 512
    """Most tokens in one step."""
    rate: Annotated[float, Field(gt=0)] | None = None
    """Requests per second."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format."""
    quiet: bool = False
    """Say less."""
    verifiers: tuple[HostPort, ...] = ("127.0.0.1:7600",)
    """Where verifiers listen."""
    metrics: OptionalHostPort = ""
    """Where metrics are."""
    password: SecretStr | None = None
    """Never shown."""
    key: Annotated[str, Field(json_schema_extra={"secret": True}, max_length=8)] = ""
    """Never shown either."""

    @model_validator(mode="after")
    def _together(self) -> Example:
        if self.quiet and self.rate == 13:
            raise ValueError("quiet and rate 13 do not go together; drop one")
        return self


def configuration(tmp_path: Path, toml: str = "", **more: Any) -> Example:
    file = tmp_path / "fleet.toml"
    file.write_text(toml)
    flags = {"model": "m"} | more.pop("flags", {})
    return load(Example, section="verifier", file=file, env=more.pop("env", {}), flags=flags)


def test_flags_outrank_environment_outranks_file(tmp_path: Path) -> None:
    """Each value comes from the last of file, environment and flags that names it."""
    found = configuration(
        tmp_path,
        '[verifier]\nmodel = "f"\nstep_tokens = 100\nrate = 1.5\nquiet = true\n[drafter]\nmodel = "other"',
        env={"SPECFLEET_VERIFIER_STEP_TOKENS": "200", "SPECFLEET_VERIFIER_RATE": "2.5", "HOME": "/"},
        flags={"model": "g", "step_tokens": "300"},
    )

    assert (found.model, found.step_tokens, found.rate, found.quiet, found.dtype) == ("g", 300, 2.5, True, "float32")


def test_lists_come_from_everywhere(tmp_path: Path) -> None:
    """Tuples are arrays in the file, comma-separated in the environment, repeated flags."""
    expected = ("a:1", "b:2")

    assert expected == configuration(tmp_path, '[verifier]\nverifiers = ["a:1", "b:2"]').verifiers
    assert expected == configuration(tmp_path, env={"SPECFLEET_VERIFIER_VERIFIERS": "a:1, b:2"}).verifiers
    assert expected == configuration(tmp_path, flags={"verifiers": ("a:1", "b:2")}).verifiers


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"toml": "[verifier]\nstep_token = 9"},
            r"fleet\.toml: unknown key step_token in \[verifier\]; did you mean step_tokens\?",
        ),
        ({"toml": "[verifer]"}, r"unknown table \[verifer\]; did you mean verifier\?"),
        ({"toml": "model = 'x'"}, r"model stands outside a table; write \[verifier\] above it"),
        ({"toml": "[verifier]\nx = = 3"}, r"fleet\.toml is not TOML: .*line 2"),
        (
            {"toml": "[verifier]\nstep_tokens = 8"},
            r"step_tokens in \[verifier\] of .*fleet\.toml is 8, must be at least 16",
        ),
        (
            {"env": {"SPECFLEET_VERIFIER_STEP_TOKEN": "9"}},
            r"unknown environment variable SPECFLEET_VERIFIER_STEP_TOKEN; did you mean SPECFLEET_VERIFIER_STEP_TOKENS\?",
        ),
        (
            {"env": {"SPECFLEET_STEP_TOKENS": "9"}},
            "SPECFLEET_STEP_TOKENS names no daemon; it is SPECFLEET_VERIFIER_STEP_TOK",
        ),
        (
            {"env": {"SPECFLEET_VERIFIER_STEP_TOKENS": "x"}},
            "^SPECFLEET_VERIFIER_STEP_TOKENS is 'x', must be a whole number$",
        ),
        ({"env": {"SPECFLEET_VERIFIER_QUIET": "maybe"}}, "QUIET is 'maybe', must be true or false"),
        ({"flags": {"step_tokens": "5000"}}, "^--step-tokens is '5000', must be at most 4096$"),
        ({"flags": {"rate": "0"}}, "^--rate is '0', must be above 0$"),
        ({"flags": {"dtype": "int3"}}, "^--dtype is 'int3', must be one of 'float32' or 'bfloat16'$"),
        ({"flags": {"verifiers": ("a:1", "b")}}, "^--verifiers is 'b', must be HOST:PORT with a port from 0 to 65535"),
        ({"flags": {"metrics": "h:70000"}}, "^--metrics is 'h:70000', must be HOST:PORT"),
        ({"flags": {"stp_tokens": 1}}, r"^--stp-tokens is unknown; did you mean step_tokens\?$"),
        ({"flags": {"quiet": True, "rate": "13"}}, "^quiet and rate 13 do not go together; drop one$"),
        ({"flags": {"key": "hunter2hunter2"}}, r"^--key is \(secret\), must be"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    """Every mistake is one line that names where it was made, the value, and what is right."""
    with pytest.raises(ConfigurationError, match=message) as found:
        configuration(tmp_path, **given)
    assert "\n" not in str(found.value)
    assert "hunter2" not in str(found.value)


def test_a_missing_value_says_how_to_give_it() -> None:
    """A required value can be given in three ways, and all are named."""
    expected = r"^model is not set; give --model, SPECFLEET_VERIFIER_MODEL, or model in \[verifier\] of --config$"

    with pytest.raises(ConfigurationError, match=expected):
        load(Example, section="verifier", env={})


def test_several_mistakes_come_together(tmp_path: Path) -> None:
    """All bad values are named at once."""
    with pytest.raises(ConfigurationError, match=r"--step-tokens is '1'.*; --rate is '-1'"):
        configuration(tmp_path, flags={"step_tokens": "1", "rate": "-1"})


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    """A file that does not exist, or is no text, is named with the reason."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigurationError, match=r"cannot read .*nowhere\.toml: No such file"):
        load(Example, section="verifier", file=tmp_path / "nowhere.toml", env={})
    with pytest.raises(ConfigurationError, match="binary is not UTF-8"):
        load(Example, section="verifier", file=tmp_path / "binary", env={})


def test_kubernetes_service_links_are_not_settings(tmp_path: Path) -> None:
    """Kubernetes injects variables for a service named specfleet-verifier; they must not stop the daemon."""
    links = {
        "SPECFLEET_VERIFIER_SERVICE_HOST": "10.0.0.1",
        "SPECFLEET_VERIFIER_SERVICE_PORT": "7600",
        "SPECFLEET_VERIFIER_SERVICE_PORT_GRPC": "7600",
        "SPECFLEET_VERIFIER_PORT": "tcp://10.0.0.1:7600",
        "SPECFLEET_VERIFIER_PORT_7600_TCP": "tcp://10.0.0.1:7600",
        "SPECFLEET_VERIFIER_PORT_7600_TCP_ADDR": "10.0.0.1",
        "SPECFLEET_DRAFTER_PORT": "tcp://10.0.0.2:7700",
        "SPECFLEET_DEBUG": "1",
    }

    assert configuration(tmp_path, env=links).step_tokens == 512


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `env` the process's own environment counts."""
    monkeypatch.setenv("SPECFLEET_VERIFIER_STEP_TOKENS", "77")

    assert load(Example, section="verifier", flags={"model": "m"}).step_tokens == 77


def test_description_masks_secrets(tmp_path: Path) -> None:
    """describe() gives every resolved value, secrets masked, and says where there is none."""
    found = configuration(tmp_path, flags={"password": "hunter2", "key": "hunter3", "verifiers": ("a:1", "b:2")})

    assert describe(found) == [
        "model = m",
        "step_tokens = 512",
        "rate = (none)",
        "dtype = float32",
        "quiet = false",
        "verifiers = a:1, b:2",
        "metrics = (none)",
        "password = ********",
        "key = ********",
    ]


def test_secrets_of_later_types_are_masked_too(tmp_path: Path) -> None:
    """Text, bytes or a mark in the schema: each of them counts as secret in errors as well."""
    with pytest.raises(ConfigurationError, match=r"--password is \(secret\), must be a text"):
        configuration(tmp_path, flags={"password": 5})
