"""Write `docs/commands.md` from the commands themselves (`make commands`).

The words are those of `--help`, so that a flag is explained in one place; tests/unit/test_docs_commands.py sees to it that
every flag stands there as its command explains it.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import click

from specfleet.cli.main import COMMANDS, specfleet

PAGE = Path(__file__).resolve().parent / "commands.md"
HEAD = """\
# Commands

Made by `make commands` from what `specfleet COMMAND --help` says. A daemon's flag can stand in a file (`--config`, without the
dashes) or in the environment (`env`), too.

Exit codes: 0 done, 2 bad usage or bad request, 3 cannot reach a server, 4 refused (authentication, quota, overload), 5 failed
midway, 130 interrupted. `SPECFLEET_DEBUG=1` shows where an error came from.
"""


def page() -> str:
    """The whole page."""
    group = click.Context(specfleet, info_name="specfleet")
    parts = [HEAD]
    for name in COMMANDS:
        command = specfleet.get_command(group, name)
        assert command is not None
        parts.append(_section(command, click.Context(command, info_name=name, parent=group)))
    return "\n".join(parts)


def _section(command: click.Command, context: click.Context) -> str:
    usage = " ".join(command.collect_usage_pieces(context)).replace("[OPTIONS]", "[FLAGS]")
    lines = [f"## specfleet {context.info_name}", "", f"`specfleet {context.info_name} {usage}`", ""]
    lines += _prose(inspect.cleandoc(command.help or ""))
    flags = (one for one in command.params if isinstance(one, click.Option))
    rows = [row for one in flags if (row := one.get_help_record(context))]
    if rows:
        lines += ["", "| flag | |", "|---|---|", *(f"| `{_cell(flag)}` | {_cell(text)} |" for flag, text in rows)]
    return "\n".join([*lines, ""])


def _prose(text: str) -> list[str]:
    """click's help as Markdown: what stands behind a \\b is kept as it is, as a block."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        rows = paragraph.splitlines()
        if rows[0] == "\b":
            lines += ["```", *rows[1:], "```", ""]
        else:
            lines += [*rows, ""]
    return lines[:-1]


def _cell(text: str) -> str:
    """A pipe would end it."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
