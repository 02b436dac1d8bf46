"""`specfleet token`: a new bearer token; a daemon's tokens file gets its hash only."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

from specfleet.core.errors import ConfigurationError
from specfleet.wire.auth import hash_of, new_token, parse_tokens


@click.command("token")
@click.argument("name")
@click.option("--file", "path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Append to it.")
def command(name: str, path: Path | None) -> None:
    """Make a bearer token for NAME, and print it: once, for it is stored nowhere.

    \b
    specfleet token alice --file tokens            # a daemon with --tokens tokens lets alice in from now on
    SPECFLEET_TOKEN=… specfleet generate "Hello" --server edge-7:7700 --tls-ca ca.pem

    Without --file the line for the file is printed, too. To revoke a token, delete its line.
    """
    if not re.fullmatch(r"[^\s#]{1,128}", name):
        raise click.UsageError(f"NAME {name[:130]!r} must have 1 to 128 characters, none of them a space or #")
    token = new_token()
    line = f"{name} {hash_of(token)}"
    if path is not None:
        _append(path, line)
    click.echo(token)
    if path is None:
        click.echo(line, err=True)


def _append(path: Path, line: str) -> None:
    """Raises ConfigurationError, also for a file that holds something else."""
    if path.exists():
        parse_tokens(path)
        content = path.read_text("utf-8")
        line = line if not content or content.endswith("\n") else f"\n{line}"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
