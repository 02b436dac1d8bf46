"""Command line options made from a configuration model, so that a field's name, limits and help stand in one place."""

from __future__ import annotations

import typing
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from specfleet.cli.completion import Completer, files, values
from specfleet.core.config import (
    Address,
    alternatives,
    flag_name,
    is_secret,
    is_tuple,
    load,
    variable_name,
)

_METAVARS: dict[Any, str] = {int: "N", float: "X", Path: "PATH"}


def daemon_command(
    name: str, model: type[BaseModel], run: Callable[[Any], int], *, summary: str, examples: str
) -> click.Command:
    """A command whose options are the fields of `model`; it loads the configuration and returns what `run` returns.

    Values are checked by the model alone, so that a flag, a variable and a line in a file get the same answer.
    """

    def callback(config: str | None, **flags: Any) -> int:
        said = {key: value for key, value in flags.items() if value not in (None, ())}
        return run(load(model, section=name, file=Path(config) if config else None, flags=said))

    help_ = (
        f"{summary}\n\n\b\n{examples.strip()}\n\n"
        f"Settings come from --config (table [{name}]), then the environment ({variable_name(name, 'key')[:-3]}…), "
        "then flags; the later outranks the earlier."
    )
    config = click.Option(
        ["--config"], metavar="FILE", help="A TOML file with a table of that name.", shell_complete=files
    )
    return click.Command(name, callback=callback, params=[config, *options(model, name)], help=help_)


def options(model: type[BaseModel], section: str) -> list[click.Parameter]:
    """One option per field; an option that is not given is absent (None, or () for a repeatable one)."""
    return [_option(key, field, section) for key, field in model.model_fields.items()]


def _option(key: str, field: FieldInfo, section: str) -> click.Option:
    flag = flag_name(key)
    help_ = _help(key, field, section)
    if field.annotation is bool:
        # Both ways, so that a flag can also take back what the environment says.
        return click.Option([f"{flag}/--no-{flag[2:]}"], default=None, help=help_)
    metavar = _metavar(field)
    return click.Option(
        [flag], metavar=metavar, multiple=is_tuple(field), help=help_, shell_complete=_completer(field, metavar)
    )


def _help(key: str, field: FieldInfo, section: str) -> str:
    text = " ".join((field.description or "").split()).replace("`", "")
    facts = [f"env {variable_name(section, key)}"]
    if field.is_required():
        facts.insert(0, "required")
    elif (default := _default(field)) is not None:
        facts.insert(0, f"default {default}")
    if is_tuple(field):
        facts.insert(0, "repeatable")
    return f"{text}  [{'; '.join(facts)}]"


def _default(field: FieldInfo) -> str | None:
    value = field.get_default(call_default_factory=False)
    if value in (None, (), "", PydanticUndefined) or is_secret(field):
        return None
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value.value if isinstance(value, Enum) else value)


def _completer(field: FieldInfo, metavar: str) -> Completer | None:
    """What the tab key offers: `json_schema_extra={"values": …}`, the choices there are, or files."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and isinstance(extra.get("values"), list):
        return values(map(str, extra["values"]))  # type: ignore[arg-type]
    if metavar.startswith("PATH"):
        return files
    return values(metavar.split("|")) if "|" in metavar else None


def _metavar(field: FieldInfo) -> str:
    """What stands behind the flag in --help: `json_schema_extra={"metavar": …}`, or as the type says."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and isinstance(extra.get("metavar"), str):
        return str(extra["metavar"])
    kind = alternatives(field.annotation)[0]
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(one.value) for one in kind)
    if any(isinstance(one, Address) for one in (*field.metadata, *getattr(kind, "__metadata__", ()))):
        return "HOST:PORT"
    return _METAVARS.get(kind, "TEXT")
