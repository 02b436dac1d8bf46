"""The verifier's configuration: file, environment, then flags (specfleet.core.config)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, InstanceOf, field_validator

from scheduler.batching import POLICIES as BATCHING
from scheduler.identities import Share
from scheduler.speculation import POLICIES as SPECULATION
from specfleet.core.config import DaemonConfig, HostPort, OptionalHostPort
from specfleet.core.errors import ConfigurationError
from specfleet.core.types import ServiceClass
from specfleet.core.words import nearest

CLASS_KEYS = {"ttft": "ttft_seconds", "tpot": "tpot_seconds", "weight": "weight"}
SHARE_KEYS = {"weight": "weight", "sessions": "sessions", "tokens-per-minute": "tokens_per_minute"}


@dataclass(frozen=True, slots=True)
class NamedShare:
    """Whose share it is."""

    identity: str
    share: Share

    def __str__(self) -> str:
        return _written(self.identity, SHARE_KEYS, self.share)


def _class(value: Any) -> Any:
    """NAME:ttft=SECONDS,tpot=SECONDS,weight=X as a ServiceClass."""
    if not isinstance(value, str):
        return value
    name, numbers = _parsed(value, CLASS_KEYS)
    return _made(NamedClass, name=name, **numbers)


def _share(value: Any) -> Any:
    """IDENTITY:weight=X,sessions=N,tokens-per-minute=N as a NamedShare. An identity may hold colons itself."""
    if not isinstance(value, str):
        return value
    name, numbers = _parsed(value, SHARE_KEYS)
    return NamedShare(name, _made(Share, **numbers))


def _parsed(text: str, keys: dict[str, str]) -> tuple[str, dict[str, float | int]]:
    """NAME:key=number,… (also with ; between, as in the environment, where commas part list items)."""
    name, colon, rest = text.rpartition(":")
    if not colon or not name:
        raise ValueError(
            f"NAME:{','.join(f'{key}=X' for key in keys)}, each of them optional, such as chat:{next(iter(keys))}=1"
        )
    found: dict[str, float | int] = {}
    for part in filter(None, rest.replace(";", ",").split(",")):
        key, _, number = (one.strip() for one in part.partition("="))
        if key not in keys:
            raise ValueError(f"made of {', '.join(keys)}; {key!r} is unknown{nearest(key, keys)}")
        try:
            found[keys[key]] = int(number) if key == "sessions" else float(number)
        except ValueError:
            raise ValueError(f"{key}=NUMBER, not {part!r}") from None
    return name, found


def _made(kind: Any, **fields: Any) -> Any:
    try:
        return kind(**fields)
    except ConfigurationError as error:
        raise ValueError(f"possible: {error}") from None


def _written(name: str, keys: dict[str, str], value: object) -> str:
    said = {key: getattr(value, attribute) for key, attribute in keys.items()}
    return f"{name}:" + ",".join(f"{key}={number:g}" for key, number in said.items() if number is not None)


class NamedClass(ServiceClass):
    """A service class as it is written on a command line."""

    __slots__ = ()

    def __str__(self) -> str:
        return _written(self.name, CLASS_KEYS, self)


class VerifierConfig(DaemonConfig):
    model: Annotated[str, Field(json_schema_extra={"metavar": "PATH_OR_HUB_ID"})]
    """Target model: a folder, or a hub id."""
    listen: HostPort = "127.0.0.1:7600"
    """HOST:PORT for gRPC; port 0 takes any free one."""
    http: OptionalHostPort = ""
    """HOST:PORT for OpenAI-compatible HTTP without drafters; empty for none."""
    metrics: OptionalHostPort = "127.0.0.1:7601"
    """HOST:PORT for Prometheus metrics; empty for none."""
    vllm_metrics: bool = False
    """Export what speculation did under vLLM's names, too, for tools that look for them."""
    name: str = ""
    """Name of the served model in requests and figures; the last part of its path by default."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of the model; 0 takes half of the cores, for threads that spin and everything else disturb each other."""
    kv_cache_tokens: Annotated[int, Field(ge=64)] | None = None
    """Tokens the KV cache holds, over all sessions; by default what a GPU has free, and 16384 on the CPU."""
    cuda_graphs: bool = True
    """On a GPU with Triton, record steps of up to 64 sessions at start and replay them: no Python in a step's forward pass."""
    max_step_tokens: Annotated[int, Field(ge=16)] = 512
    """Most tokens in one step; longer prompts are prefilled in chunks."""
    max_sessions: Annotated[int, Field(ge=1)] = 256
    """Sessions open at a time; more are refused with a time to come back."""
    speculation: Annotated[str, Field(json_schema_extra={"metavar": "POLICY", "values": [*SPECULATION]})] = (
        "fair-goodput"
    )
    """Speculation policy: fair-goodput, goodspeed:C, smartspec, awc, ladder, fixed:K, stream, none, random."""
    batching: Annotated[str, Field(json_schema_extra={"metavar": "POLICY", "values": [*BATCHING]})] = "slo"
    """Batching policy: slo, fifo, length-aware."""
    service_class: Annotated[
        tuple[Annotated[InstanceOf[ServiceClass], BeforeValidator(_class)], ...],
        Field(json_schema_extra={"metavar": "NAME:ttft=S,tpot=S,weight=X"}),
    ] = ()
    """A class that requests may name: seconds to the first token and per token after it, and what its tokens count."""
    share: Annotated[
        tuple[Annotated[InstanceOf[NamedShare], BeforeValidator(_share)], ...],
        Field(json_schema_extra={"metavar": "IDENTITY:weight=X,sessions=N,tokens-per-minute=N"}),
    ] = ()
    """What an identity may have; those not named have weight 1 and no limits."""
    profile: Path | None = None
    """Step-time profile of this machine and model; without one the scheduler learns from scratch."""
    draft_wait_seconds: Annotated[float, Field(gt=0)] = 1.0
    """How long a round waits for its draft before the verifier decodes without it."""
    idle_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A stream that neither opens nor takes its verdicts for so long is ended."""
    step_seconds_limit: Annotated[float, Field(gt=0)] = 60.0
    """A step that takes longer is stuck: not ready, and everybody is told to go on elsewhere, until it ends."""
    deterministic: bool = False
    """On a GPU, kernels whose result for one sequence does not depend on the rest of the batch."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """Seed of unseeded sampling and of policies that draw; from the system by default."""

    @field_validator("service_class", "share")
    @classmethod
    def _no_name_twice(cls, value: tuple[ServiceClass | NamedShare, ...]) -> tuple[ServiceClass | NamedShare, ...]:
        names = [one.name if isinstance(one, ServiceClass) else one.identity for one in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"a list without repetitions; {name!r} is in it twice")
        return value
