"""Configuration of the daemons: one frozen pydantic model each; file < environment < flags; every error in one line.

A model is frozen, forbids unknown keys, and has a docstring under each field: its help text, on the command line and
everywhere else.

    class VerifierConfig(DaemonConfig):
        max_step_tokens: int = Field(512, ge=1)
        \"""Most tokens in one step.\"""

    load(VerifierConfig, section="verifier", file=Path("fleet.toml"), flags={"max_step_tokens": "256"})

Fields are flat: numbers, texts, booleans, choices, or tuples of them. pydantic is imported here and in the daemons'
configuration modules only; the SDK does without.
"""

from __future__ import annotations

import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SecretBytes,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_after_validator_function

from specfleet.core.address import is_address
from specfleet.core.errors import ConfigurationError
from specfleet.core.words import nearest

SECTIONS = ("verifier", "drafter")
"""Tables that a configuration file may hold, so that one file can serve a whole machine."""
PREFIX = "SPECFLEET_"
_NUMBER = ".15g"
"""Limits are shown as they were written: 1 and not 1.0, 16384 and not 1.6e4."""

_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$")
"""Kubernetes puts such variables into every container for each service: SPECFLEET_VERIFIER_PORT=tcp://… for a service
named specfleet-verifier. They are nobody's settings."""

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Address:
    """Marks a text field as HOST:PORT (port 0: any free one) and checks it. `optional` lets "" pass, for none."""

    optional: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: str) -> str:
        if not is_address(value) and not (self.optional and value == ""):
            raise ValueError("HOST:PORT with a port from 0 to 65535, such as 127.0.0.1:7600")
        return value


HostPort = Annotated[str, Address()]
OptionalHostPort = Annotated[str, Address(optional=True)]


@dataclass(frozen=True, slots=True)
class _Given:
    """One value and where it came from."""

    value: Any
    source: str


def load(
    model: type[M],
    *,
    section: str,
    file: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> M:
    """The configuration: [section] of the TOML `file` < environment SPECFLEET_SECTION_KEY < `flags`.

    `env` is the process's own by default. `flags` holds only what was said on the command line, by field name; texts are
    converted like the environment's. In the environment, tuples are comma-separated. Raises ConfigurationError.
    """
    given = {
        **(_from_file(model, section, file) if file is not None else {}),
        **_from_environment(model, section, os.environ if env is None else env),
        **{key: _Given(value, flag_name(key)) for key, value in (flags or {}).items()},
    }
    try:
        return model(**{key: one.value for key, one in given.items()})
    except ValidationError as error:
        problems = dict.fromkeys(_problem(model, section, given, dict(one)) for one in error.errors(include_url=False))
        raise ConfigurationError("; ".join(problems)) from None


class DaemonConfig(BaseModel):
    """What both daemons are told: their model, where they listen, whom they trust, and how they end."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    # First of all in each, which says what they mean there and what the default is.
    model: str
    listen: HostPort
    metrics: OptionalHostPort
    http: OptionalHostPort
    tls_cert: Path | None = None
    """Certificate to show to callers (PEM); turns TLS on. Read again when it changes."""
    tls_key: Path | None = None
    """Its private key (PEM)."""
    tls_client_ca: Path | None = None
    """Callers need a certificate of this authority (PEM); its common name is who they are."""
    tokens: Path | None = None
    """Callers need a bearer token; this file has their names and hashes (specfleet token). Read again when it changes."""
    allow: tuple[str, ...] = ()
    """An identity that may call; without any, all that credentials vouch for."""
    insecure: bool = False
    """Plaintext to and from other machines is meant."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format; auto is float32 on the CPU and the model's own on a GPU."""
    drain_seconds: Annotated[float, Field(ge=0)] = 5.0
    """How long running generations may go on after SIGTERM."""
    trace: bool = False
    """Note where the time of each round goes, for specfleet bench --breakdown and --trace-out; served beside the metrics."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines shown."""

    @model_validator(mode="after")
    def _credentials_are_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key need each other; give both")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("--tls-client-ca needs TLS; give --tls-cert and --tls-key, too")
        if self.allow and self.tls_client_ca is None and self.tokens is None:
            raise ValueError("--allow needs credentials to know callers by; give --tls-client-ca or --tokens, too")
        return self


def describe(config: BaseModel) -> list[str]:
    """The resolved configuration as `key = value` lines; secrets are masked."""
    fields = type(config).model_fields
    return [f"{name} = {_shown(field, getattr(config, name))}" for name, field in fields.items()]


def flag_name(key: str) -> str:
    return "--" + key.replace("_", "-")


def variable_name(section: str, key: str) -> str:
    return f"{PREFIX}{section}_{key}".upper()


def is_secret(field: FieldInfo) -> bool:
    """True for SecretStr, SecretBytes, and fields with `json_schema_extra={"secret": True}`."""
    extra = field.json_schema_extra
    marked = isinstance(extra, dict) and bool(extra.get("secret"))
    return marked or any(kind in (SecretStr, SecretBytes) for kind in alternatives(field.annotation))


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types a field may have, None apart: `int | None` gives (int,)."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(one for one in typing.get_args(annotation) if one is not type(None))
    return (annotation,)


def is_tuple(field: FieldInfo) -> bool:
    return any(kind is tuple or typing.get_origin(kind) is tuple for kind in alternatives(field.annotation))


def _from_file(model: type[BaseModel], section: str, file: Path) -> dict[str, _Given]:
    document = _parse(file)
    for name, table in document.items():
        if not isinstance(table, dict):
            raise ConfigurationError(f"{file}: {name} stands outside a table; write [{section}] above it")
        if name not in SECTIONS and name != section:
            raise ConfigurationError(f"{file}: unknown table [{name}]{nearest(name, (*SECTIONS, section))}")
    table = document.get(section, {})
    for key in table:
        if key not in model.model_fields:
            raise ConfigurationError(f"{file}: unknown key {key} in [{section}]{nearest(key, model.model_fields)}")
    return {key: _Given(value, f"{key} in [{section}] of {file}") for key, value in table.items()}


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}; check --config") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{file} is not TOML: {error}") from error  # it names line and column


def _from_environment(model: type[BaseModel], section: str, env: Mapping[str, str]) -> dict[str, _Given]:
    own = variable_name(section, "")
    known = {variable_name(section, key): key for key in model.model_fields}
    found = {}
    for name, value in env.items():
        if name in known:
            key = known[name]
            found[key] = _Given(_split(value) if is_tuple(model.model_fields[key]) else value, name)
        elif name.startswith(own) and not _SERVICE_LINK.search(name):
            raise ConfigurationError(f"unknown environment variable {name}{nearest(name, known)}")
        elif name.startswith(PREFIX) and own + name.removeprefix(PREFIX) in known:
            raise ConfigurationError(
                f"environment variable {name} names no daemon; it is {own}{name.removeprefix(PREFIX)}"
            )
    return found


def _split(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _problem(model: type[BaseModel], section: str, given: Mapping[str, _Given], error: Mapping[str, Any]) -> str:
    """One pydantic error as one sentence: where it came from, the value, the limit."""
    key = str(error["loc"][0]) if error["loc"] else ""
    limit = _limit(error)
    if key not in model.model_fields:  # a rule over several fields, or a flag that the model does not know
        return f"{flag_name(key)} is unknown{nearest(key, model.model_fields)}" if key else limit
    if error["type"] == "missing":
        where = f"give {flag_name(key)}, {variable_name(section, key)}, or {key} in [{section}] of --config"
        return f"{key} is not set; {where}"
    source = given[key].source if key in given else f"{key} (default)"
    value = "(secret)" if is_secret(model.model_fields[key]) else repr(error["input"])
    return f"{source} is {value}, must be {limit}"


def _limit(error: Mapping[str, Any]) -> str:
    """What would have been right, to be read after "must be"."""
    context = error.get("ctx", {})
    match error["type"]:
        case "greater_than_equal":
            return f"at least {context['ge']:{_NUMBER}}"
        case "greater_than":
            return f"above {context['gt']:{_NUMBER}}"
        case "less_than_equal":
            return f"at most {context['le']:{_NUMBER}}"
        case "less_than":
            return f"below {context['lt']:{_NUMBER}}"
        case "literal_error" | "enum":
            return f"one of {context['expected']}"
        case "value_error" | "assertion_error":
            return str(context["error"])
        case "int_parsing" | "int_type" | "int_from_float":
            return "a whole number"
        case "float_parsing" | "float_type":
            return "a number"
        case "finite_number":
            return "a finite number"
        case "bool_parsing" | "bool_type":
            return "true or false"
        case "string_type" | "path_type":
            return "a text"
        case "tuple_type" | "list_type":
            return "a list"
        case _:
            return str(error["msg"])


def _shown(field: FieldInfo, value: Any) -> str:
    if value is None or value == "":
        return "(none)"
    if is_secret(field):
        return "********" if value else "(none)"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "(none)"
    return str(value).lower() if isinstance(value, bool) else str(value)
