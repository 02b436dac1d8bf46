"""Request traces as they are published: Azure's CSV and Mooncake's JSON lines, read without conversion."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from specfleet.core.errors import ConfigurationError
from specfleet.core.words import nearest

AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOONCAKE = ("timestamp", "input_length", "output_length")
BLOCK_TOKENS = 512
"""Tokens of the prompt that one of Mooncake's hash_ids stands for."""


@dataclass(frozen=True, slots=True)
class Row:
    at: float
    """Seconds from the trace's first row."""
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    """What its prompt's blocks of 512 tokens hold, by number; prompts with the same numbers in front begin alike."""


def read_trace(path: Path, limit: int | None = None) -> list[Row]:
    """Rows in order of arrival.

    Raises:
        ConfigurationError: naming the file, and the line that cannot be read.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = enumerate(file, 1)
            first = next(lines, (0, ""))[1]
            parse = _azure(path, first) if not first.lstrip().startswith("{") else _mooncake
            rows = [] if parse is not _mooncake else [_row(path, 1, first, parse)]
            for number, line in lines:
                if limit is not None and len(rows) >= limit:
                    break
                if line.strip():
                    rows.append(_row(path, number, line, parse))
    except OSError as error:
        raise ConfigurationError(f"cannot read the trace {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    if not rows:
        raise ConfigurationError(f"{path} holds no requests")
    start = min(row.at for row in rows)
    return sorted(
        (Row(row.at - start, row.prompt_tokens, row.output_tokens, row.blocks) for row in rows), key=lambda row: row.at
    )


Parse = Callable[[str], Row]


class _Bad(ValueError):
    """A row that cannot be read, and why."""


def _row(path: Path, number: int, line: str, parse: Parse) -> Row:
    try:
        return parse(line)
    except _Bad as error:
        raise ConfigurationError(f"{path}, line {number}: {error}") from None


def _azure(path: Path, header: str) -> Parse:
    """A parser for rows of a CSV with this header."""
    names = [name.strip() for name in header.strip().split(",")]
    missing = [name for name in AZURE if name not in names]
    if missing:
        raise ConfigurationError(
            f"{path}, line 1: no column {missing[0]}{nearest(missing[0], names)}; a trace has {', '.join(AZURE)}, or is JSON "
            f"lines with {', '.join(MOONCAKE)}"
        )
    time, prompt, output = (names.index(name) for name in AZURE)

    def parse(line: str) -> Row:
        cells = next(csv.reader([line]))
        if len(cells) != len(names):
            raise _Bad(f"{len(cells)} columns, must be {len(names)}")
        try:
            moment = datetime.fromisoformat(cells[time].strip())
        except ValueError:
            raise _Bad(
                f"TIMESTAMP is {cells[time]!r}, must be a date and time such as 2023-11-16 18:15:46.68"
            ) from None
        at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()  # no clock of this machine's in it
        return Row(at, _count("ContextTokens", cells[prompt]), _count("GeneratedTokens", cells[output]))

    return parse


def _mooncake(line: str) -> Row:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise _Bad(f"is not JSON: {error}") from None
    if not isinstance(found, Mapping):
        raise _Bad("is no JSON object")
    for name in MOONCAKE:
        if name not in found:
            raise _Bad(f"{name} is missing{nearest(name, list(found))}")
    if isinstance(found["timestamp"], bool) or not isinstance(found["timestamp"], int | float):
        raise _Bad(f"timestamp is {found['timestamp']!r}, must be milliseconds")
    blocks = found.get("hash_ids", [])
    if not isinstance(blocks, list) or not all(isinstance(one, int) for one in blocks):
        raise _Bad("hash_ids must be whole numbers")
    return Row(
        float(found["timestamp"]) / 1e3,
        _count("input_length", found["input_length"]),
        _count("output_length", found["output_length"]),
        tuple(blocks),
    )


def _count(name: str, value: object) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise _Bad(f"{name} is {value!r}, must be a whole number of at least 1")
    return number
