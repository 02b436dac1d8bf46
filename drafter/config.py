"""The drafter's configuration: file, environment, then flags (specfleet.core.config)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from specfleet.core.config import DaemonConfig, HostPort, OptionalHostPort
from specfleet.core.protocol import MAX_DRAFT_TOKENS

NGRAM = "ngram"
"""What `model` says where there is none."""


def _several(value: Any) -> Any:
    """One address may stand in a file without the brackets of a list."""
    return (value,) if isinstance(value, str) else value


class DrafterConfig(DaemonConfig):
    model: Annotated[str, Field(json_schema_extra={"metavar": "PATH_OR_HUB_ID|ngram"})]
    """Draft model: a folder, a hub id, or ngram for prompt lookup without a model."""
    verifier: Annotated[tuple[HostPort, ...], BeforeValidator(_several)] = ("127.0.0.1:7600",)
    """HOST:PORT of a verifier; of several with one model, each generation goes to one."""
    speculator: Literal["model", "hybrid"] = "model"
    """What guesses: the model, or prompt lookup where the text repeats itself and the model elsewhere."""
    ahead: bool = True
    """In ROUND, too, draft on while verdicts are on their way."""
    max_draft: Annotated[int, Field(ge=1, le=MAX_DRAFT_TOKENS)] | None = None
    """Longest draft of a round, whatever length is granted."""
    early_stop: bool = True
    """End a draft where the next guess would not pay, as learnt from verdicts."""
    trees: bool = False
    """Beside a draft, send second guesses for its doubtful places where the verifier has room and they pay, as learnt."""
    state: Path | None = None
    """Folder where what was learnt of guesses is kept over restarts, a file for each pair of models."""
    quantize: Literal["auto", "int8", "int4", "none"] = "auto"
    """Run the draft model with smaller weights, which never change the text; auto is int8 on the CPU if the model takes it."""
    routing: Literal["jsq", "p2c", "round-robin", "random"] = "p2c"
    """Which of several verifiers: the least loaded, the less loaded of two, in turns, any."""
    listen: HostPort = "127.0.0.1:7700"
    """HOST:PORT for gRPC; port 0 takes any free one."""
    http: OptionalHostPort = "127.0.0.1:8000"
    """HOST:PORT for OpenAI-compatible HTTP and a page to try it; empty for none."""
    metrics: OptionalHostPort = "127.0.0.1:7701"
    """HOST:PORT for Prometheus metrics; empty for none."""
    verifier_ca: Path | None = None
    """Authority of the verifiers' certificates (PEM); turns TLS on for the way to them. Read again when it changes."""
    verifier_cert: Path | None = None
    """Certificate to show to verifiers that ask for one (PEM)."""
    verifier_key: Path | None = None
    """Its private key (PEM)."""
    verifier_token: Path | None = None
    """File that holds the bearer token for the verifiers. Read again when it changes."""
    name: str = ""
    """Name of this drafter in figures; its address by default."""
    threads: Annotated[int, Field(ge=0)] = 1
    """CPU threads of the draft model; small models are fastest with one. 0 takes all cores."""
    kv_cache_tokens: Annotated[int, Field(ge=64)] = 16384
    """Tokens the draft model's KV cache holds, over all users."""
    connect_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How long to wait for the verifier at the start."""
    open_seconds: Annotated[float, Field(ge=0)] = 5.0
    """How long a new generation looks for a verifier that can be reached."""
    resume_seconds: Annotated[float, Field(ge=0)] = 300.0
    """How long a running generation that lost its verifier looks for another; its caller's deadline may end it sooner."""

    @model_validator(mode="after")
    def _lookup_has_no_model(self) -> Self:
        if self.model == NGRAM and (self.speculator != "model" or self.quantize in ("int8", "int4")):
            raise ValueError("--model ngram has no model: leave --speculator and --quantize out, or name a model")
        return self

    @model_validator(mode="after")
    def _trees_need_a_model_and_what_is_learnt(self) -> Self:
        if self.trees and self.model == NGRAM:
            raise ValueError("--trees needs a draft model's second choices; leave it out, or name a model")
        if self.trees and not self.early_stop:
            raise ValueError("--trees goes by what --early-stop learns; leave out --no-early-stop, or --trees")
        return self

    @model_validator(mode="after")
    def _credentials_for_verifiers_are_whole(self) -> Self:
        if (self.verifier_cert is None) != (self.verifier_key is None):
            raise ValueError("--verifier-cert and --verifier-key need each other; give both")
        return self

    @field_validator("verifier")
    @classmethod
    def _some_and_none_twice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("a list of at least one HOST:PORT")
        for one in value:
            if value.count(one) > 1:
                raise ValueError(f"a list without repetitions; {one} is in it twice")
        return value
