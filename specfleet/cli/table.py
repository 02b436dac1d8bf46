"""Tables for people."""

from __future__ import annotations

from collections.abc import Sequence


def cell(value: float | None, form: str) -> str:
    """A number, or a dash where it is not known."""
    return "–" if value is None else format(value, form)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(_line(row, widths) for row in (header, *rows))


def fitted(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """The same; where that is wider than `width` columns, a line for each column and a column for each row."""
    across = table(header, rows)
    if max(map(len, across.splitlines())) <= width:
        return across
    first, *others = zip(header, *rows, strict=True)
    return table(first, others)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (f"{text:>{width}}" for text, width in zip(row, widths, strict=True))
    return "  ".join((f"{first.strip():<{widths[0]}}", *others))
