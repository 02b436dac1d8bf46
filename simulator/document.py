"""Configuration files: YAML in, a checked Simulation out, every mistake in one line that names file, key, value and limit."""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from simulator.config import Simulation
from specfleet.core.errors import ConfigurationError
from specfleet.core.words import nearest

CONFIGS = files("simulator") / "configs"
Document = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise ConfigurationError(f"key {name} stands twice, again in line {key.start_mark.line + 1}")
            seen.add(name)
        return super().construct_mapping(node, deep)


# As in YAML 1.2: on, off, yes and no are words.
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if letter in "tTfF" or tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse(text: str) -> Any:
    """YAML as configurations are written in it. Raises yaml.YAMLError, or ConfigurationError for a key that stands twice."""
    return yaml.load(text, _Loader)


def shipped() -> list[str]:
    """Names of the files that come with the package."""
    return sorted(one.name for one in CONFIGS.iterdir() if one.name.endswith(".yaml"))


def find(name: str) -> Path:
    """A configuration by path, or by the name of one that ships with the package (`tutorial`, `dsd-600.yaml`).

    Raises:
        ConfigurationError: naming those that ship.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = shipped()
    for wanted in (name, f"{name}.yaml"):
        if wanted in known:
            return Path(str(CONFIGS / wanted))
    raise ConfigurationError(
        f"cannot read {name}: no such file; those that ship are {', '.join(known)}{nearest(name, known)}"
    )


def read(path: Path) -> Document:
    """The file as it stands. Raises ConfigurationError."""
    try:
        found = yaml.load(path.read_text("utf-8"), _Loader)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigurationError(f"{path} is not YAML: {getattr(error, 'problem', error)}{where}") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise ConfigurationError(f"{path} holds no keys; begin with duration, tiers, verifiers and workload")
    return found


def checked(document: Document, path: Path) -> Simulation:
    """Raises ConfigurationError, all mistakes in one line."""
    try:
        simulation = Simulation.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False)
        parts = {one["loc"][:end] for one in found for end in range(len(one["loc"]))}
        # A list whose only entry is wrong is "too short", too, which is no news.
        news = (one for one in found if one["type"] != "too_short" or one["loc"] not in parts)
        problems = dict.fromkeys(_problem(dict(one)) for one in news)
        raise ConfigurationError(f"{path}: " + "; ".join(problems)) from None
    for name, group in simulation.verifiers.items():
        try:
            group.machine(path.parent)
        except ConfigurationError as error:
            what = f"is {group.profile!r}, must be " if isinstance(group.profile, str) else ""
            raise ConfigurationError(f"{path}: verifiers.{name}.profile {what}{error}") from None
    return simulation


def changed(document: Document, changes: Mapping[str, Any], path: Path) -> Document:
    """A copy with other values at dotted keys. Raises ConfigurationError where there is no such section."""
    new = copy.deepcopy(document)
    for key, value in changes.items():
        *sections, last = key.split(".")
        at: Any = new
        for number, section in enumerate(sections):
            if not isinstance(at, dict) or not isinstance(at.get(section), dict):
                known = at if isinstance(at, dict) else {}
                raise ConfigurationError(
                    f"{path}: {key} cannot be varied: there is no section {'.'.join(sections[: number + 1])}"
                    f"{nearest(section, map(str, known))}"
                )
            at = at[section]
        at[last] = value
    return new


def _problem(error: Mapping[str, Any]) -> str:
    """One pydantic error as one sentence."""
    location = [part for part in error["loc"] if not _inside(str(part))]
    key = ".".join(map(str, location))
    if error["type"] == "extra_forbidden":
        siblings = _keys(location[:-1])
        parent = f" in {'.'.join(map(str, location[:-1]))}" if location[1:] else ""
        return f"unknown key {location[-1]}{parent}{nearest(str(location[-1]), siblings) or _listed(siblings)}"
    if error["type"] == "missing":
        return f"{key} is not set"
    value = error["input"]
    limit = _limit(error)
    if not location:  # a rule over several keys, which names them itself
        return limit
    if isinstance(value, BaseModel) or (isinstance(value, dict) and _keys(location)):
        return f"{key} must have {limit}"
    return f"{key} is {value!r}, must be {limit}"


def _inside(part: str) -> bool:
    """pydantic also names the branch of a union that it tried."""
    return part in ("str", "Coefficients") or "[" in part


def _listed(keys: Sequence[str]) -> str:
    return f"; there are {', '.join(keys)}" if keys else ""


def _keys(location: Sequence[int | str]) -> list[str]:
    """Keys that the section at `location` may have."""
    kind: Any = Simulation
    for part in location:
        kind = _member(kind, part)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _member(kind: Any, part: int | str) -> Any:
    """The type of one key's value: a section, what a mapping or a list is of, or None."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(str(part))
        return _section(field.annotation) if field is not None else None
    return _section(typing.get_args(kind)[-1]) if typing.get_origin(kind) is dict else None


def _section(annotation: Any) -> Any:
    if typing.get_origin(annotation) is typing.Annotated:
        return _section(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        sections = [one for one in typing.get_args(annotation) if isinstance(one, type) and issubclass(one, BaseModel)]
        return sections[0] if sections else None
    return annotation


def _limit(error: Mapping[str, Any]) -> str:
    """What would have been right, to be read after "must be"."""
    context = error.get("ctx", {})
    match error["type"]:
        case "greater_than_equal":
            return f"at least {context['ge']:g}"
        case "greater_than":
            return f"above {context['gt']:g}"
        case "less_than_equal":
            return f"at most {context['le']:g}"
        case "literal_error":
            return f"one of {context['expected']}"
        case "value_error":
            return str(context["error"])
        case "int_parsing" | "int_type" | "int_from_float":
            return "a whole number"
        case "float_parsing" | "float_type":
            return "a number"
        case "bool_parsing" | "bool_type":
            return "true or false"
        case "string_type":
            return "a text"
        case "tuple_type" | "list_type":
            return "a list"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "a section with keys of its own"
        case "invalid_key":
            return "a text: write it in quotes"
        case "too_short":
            return "not empty"
        case _:
            return str(error["msg"])
