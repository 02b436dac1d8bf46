"""docs/sdk.md says of everything that is exported that it is there, and nothing that is not."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

import specfleet
from specfleet import AsyncClient, Client, Health, Reply, SamplingParams, SpecfleetError, Speculation, Timing, Usage
from support.pair import ROOT

TEXT = (ROOT / "docs" / "sdk.md").read_text()
CODE = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)))))
"""What is set as code within the text and the tables."""


@pytest.mark.parametrize("name", sorted(set(specfleet.__all__) - {"__version__"}))
def test_every_export_is_described(name: str) -> None:
    assert name in CODE


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_every_argument_and_method_is_described(kind: type) -> None:
    """Of clients, with the default that it has."""
    arguments = {key: one.default for key, one in inspect.signature(kind.__init__).parameters.items() if key != "self"}
    assert set() == set(arguments) - CODE
    signature = re.search(r"`Client\((.+)\)`", TEXT)
    assert signature is not None
    documented = dict(part.split("=") for part in signature[1].split(", ") if "=" in part)
    assert {key: str(value) for key, value in arguments.items() if value is not inspect.Parameter.empty} == {
        key: f"{float(value)}" if value.isdigit() and key != "retries" else value for key, value in documented.items()
    }
    assert set() == {name for name in vars(kind) if not name.startswith("_")} - CODE


@pytest.mark.parametrize("kind", [SamplingParams, Reply, Usage, Speculation, Timing, Health])
def test_every_field_is_described(kind: type) -> None:
    assert set() == {field.name for field in dataclasses.fields(kind)} - CODE


def test_sampling_defaults_are_the_documented_ones() -> None:
    documented = re.search(r"`SamplingParams\((.+)\)`", TEXT)
    assert documented is not None
    said = eval(f"dict({documented[1]})")
    assert dataclasses.asdict(SamplingParams()) == said


def test_every_error_is_in_the_table() -> None:
    """And nothing that is called an error there does not exist."""
    errors = {
        name
        for name in specfleet.__all__
        if inspect.isclass(getattr(specfleet, name)) and issubclass(getattr(specfleet, name), BaseException)
    }
    table = TEXT[TEXT.index("| error | when |") :].split("```")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`([A-Z]\w+)`", row)} - {"TimeoutError"}
    assert errors - {SpecfleetError.__name__} == named
