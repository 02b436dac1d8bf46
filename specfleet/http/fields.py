"""A JSON body, field by field: each is read by name and checked for its type; what is left over in the end is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NoReturn

from specfleet.core.errors import InvalidRequest

MAX_SHOWN = 60
"""Characters of a wrong value that an error repeats."""


def parse(body: bytes) -> dict[str, Any]:
    """The object in a request's body. Raises InvalidRequest for what is no JSON object."""
    try:
        found = json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise InvalidRequest.field("body", "is nested too deeply; send a flat object") from None
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise InvalidRequest.field("body", f"is not JSON: {shown(str(error))}") from None
    if not isinstance(found, dict):
        raise InvalidRequest.field("body", f"is {kind(found)}, must be a JSON object")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON's")


def kind(value: object) -> str:
    """What a JSON value is, for people."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    names: dict[type, str] = {int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """A wrong value as an error repeats it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


class Fields:
    """The fields of one object. Null means the same as not given. `path` stands before names in errors, as in
    `stream_options.`."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._left = dict(values)
        self._path = path
        self._known: set[str] = set()

    def take(self, name: str) -> Any:
        """The value as it is; None where there is none."""
        self._known.add(name)
        return self._left.pop(name, None)

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(name, f"is {kind(value)}, must be true or false")
        return value

    def integer(self, name: str) -> int | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON has one kind of number
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(name, f"is {shown(value)}, must be a whole number")
        return value

    def number(self, name: str) -> float | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(name, f"is {shown(value)}, must be a number")
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            self.refuse(name, "is too large a number")
        return found

    def text(self, name: str) -> str | None:
        value = self.take(name)
        return None if value is None else self.as_text(name, value)

    def as_text(self, name: str, value: Any) -> str:
        """`value`, which belongs to `name`, if it is text."""
        if not isinstance(value, str):
            self.refuse(name, f"is {kind(value)}, must be a string")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            self.refuse(name, f"has an unpaired surrogate at character {error.start}, which is no text; remove it")
        return value

    def as_ids(self, name: str, value: list[Any]) -> tuple[int, ...]:
        """`value`, which belongs to `name`, if it is a list of token ids."""
        for one in value:
            if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < 2**32:
                self.refuse(name, f"holds {shown(one)}, must be token ids: whole numbers from 0 on")
        return tuple(value)

    def neutral(self, name: str, *values: object, why: str = "is not supported here; leave it out") -> None:
        """A field that is known and not supported: only values that change nothing pass."""
        value = self.take(name)
        # True equals 1 in Python, and not in JSON.
        if value is None or any(value == one and type(value) is type(one) for one in values):
            return
        self.refuse(name, why)

    def ignore(self, *names: str) -> None:
        """Fields that have no say in the text."""
        for name in names:
            self.take(name)

    def object(self, name: str) -> Fields | None:
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(name, f"is {kind(value)}, must be an object")
        return Fields(value, f"{self._path}{name}.")

    def close(self) -> None:
        """Refuse what nobody has asked for; null says nothing."""
        for name, value in self._left.items():
            if value is not None:
                near = get_close_matches(name, self._known, n=1, cutoff=0.75)
                hint = f"; did you mean {near[0]}?" if near else "; leave it out"
                self.refuse(shown(name), f"is not a field that is known here{hint}")

    def refuse(self, name: str, problem: str) -> NoReturn:
        """Raises InvalidRequest about the field."""
        raise InvalidRequest.field(f"{self._path}{name}", problem)
