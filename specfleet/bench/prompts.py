"""Prompts from a file of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from specfleet.core.errors import ConfigurationError


def read_prompts(path: Path) -> tuple[str, ...]:
    """One prompt per line: the object's "prompt", or the first of its "turns" (as Spec-Bench has them); empty lines are
    skipped. Raises ConfigurationError that names the line."""
    try:
        # Not splitlines(): it also splits at characters that JSON allows inside a text.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ConfigurationError(
            f"--prompts: cannot read {path}: {error.strerror}; give a file of JSON lines"
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"--prompts: {path} is not text in UTF-8; give a file of JSON lines") from None
    found = tuple(_prompt(path, number, line) for number, line in enumerate(lines, 1) if line.strip())
    if not found:
        raise ConfigurationError(
            f'--prompts: {path} holds no prompt; write lines like {{"prompt": "Once upon a time"}}'
        )
    return found


def _prompt(path: Path, number: int, line: str) -> str:
    where = f"--prompts: line {number} of {path}"
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigurationError(f"{where} is not JSON ({error}); mend or remove it") from None
    if not isinstance(entry, dict):
        raise ConfigurationError(f'{where} is {entry!r:.40}, must be an object like {{"prompt": "Once upon a time"}}')
    turns = entry.get("turns")
    prompt = entry.get("prompt", turns[0] if isinstance(turns, list) and turns else None)
    if not isinstance(prompt, str) or not prompt:
        raise ConfigurationError(f'{where} has no "prompt" with text in it; it has {", ".join(entry) or "nothing"}')
    return prompt
