"""A screen that is drawn over and over, as `top` does it; afterwards the terminal is as before, and has the last picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

_OPEN, _CLOSE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""The terminal's second screen, and no cursor."""
_HOME, _LINE_END, _REST = "\x1b[H", "\x1b[K", "\x1b[J"


@contextmanager
def screen() -> Iterator[Callable[[str], None]]:
    """Gives a function that shows a text in place of the one before: drawn over, not cleared first, which flickers."""
    shown = ""

    def show(text: str) -> None:
        nonlocal shown
        shown = text
        lines = "".join(f"{line}{_LINE_END}\n" for line in text.splitlines())
        click.echo(f"{_HOME}{lines}{_REST}", nl=False)

    click.echo(_OPEN, nl=False)
    try:
        yield show
    finally:
        click.echo(_CLOSE, nl=False)
        if shown:
            click.echo(shown)
