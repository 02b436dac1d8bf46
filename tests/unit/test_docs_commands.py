"""Commands in the documentation are understood by the real command line, flag by flag and value by value."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from specfleet.cli.main import COMMANDS, specfleet
from support.manifests import command_of
from support.pair import ROOT

FILES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
OURS = re.compile(r"^(?:[A-Z_]+=\S+ )*specfleet (.+)$")


REFERENCE = ROOT / "docs" / "commands.md"


def commands(file: Path) -> list[list[str]]:
    """Of every fenced block, with lines that go on joined; without what follows a comment, a pipe or a semicolon."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", file.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in lines:
        for part in re.split(r";|\||&&|>", line.split(" #")[0]):
            match = OURS.match(part.strip())
            if match:
                found.append([one for one in shlex.split(match[1]) if one != "…"])
    return found


@pytest.mark.parametrize(
    ("file", "arguments"),
    [pytest.param(file, one, id=f"{file.name}: {' '.join(one)[:60]}") for file in FILES for one in commands(file)],
)
def test_commands_are_understood(file: Path, arguments: list[str]) -> None:
    """Where an ellipsis stands for what a daemon needs, the rest of the line is checked."""
    if arguments[0] in {"verifier", "drafter"} and "--model" not in arguments:
        arguments = [*arguments, "--model", "ngram" if arguments[0] == "drafter" else "target"]
    command_of(arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_on_the_page_of_commands(name: str) -> None:
    """With the words of its own help (`make commands` writes them)."""
    section = re.search(rf"^## specfleet {name}$(.*?)(?=^## |\Z)", REFERENCE.read_text(), re.DOTALL | re.MULTILINE)
    assert section is not None
    rows = {row.split("`")[1]: row for row in section[1].splitlines() if row.startswith("| `")}
    command = specfleet.get_command(click.Context(specfleet), name)
    assert command is not None
    for option in (one for one in command.params if isinstance(one, click.Option) and not one.hidden):
        row = next((row for flag, row in rows.items() if flag.startswith(option.opts[0])), None)
        assert row is not None, f"{option.opts[0]} of {name} is missing; run `make commands`"
        assert " ".join((option.help or "").split()).replace("|", "\\|") in row, "run `make commands`"
