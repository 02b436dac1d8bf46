"""Commands in the documentation are understood by the real command line, flag by flag and value by value."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from support.manifests import command_of
from support.pair import ROOT

FILES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
OURS = re.compile(r"^(?:[A-Z_]+=\S+ )*specfleet (.+)$")


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
