"""The drafter's configuration: file, environment, then flags (specfleet.core.config)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from specfleet.core.config import HostPort, OptionalHostPort


class DrafterConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """Draft model: a folder, a hub id, or ngram for prompt lookup without a model."""
    verifier: HostPort = "127.0.0.1:7600"
    """HOST:PORT of the verifier."""
    listen: HostPort = "127.0.0.1:7700"
    """HOST:PORT for gRPC; port 0 takes any free one."""
    metrics: OptionalHostPort = "127.0.0.1:7701"
    """HOST:PORT for Prometheus metrics; empty for none."""
    name: str = ""
    """Name of this drafter in figures; its address by default."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format; auto is float32 on the CPU and the model's own on a GPU."""
    threads: Annotated[int, Field(ge=0)] = 1
    """CPU threads of the draft model; small models are fastest with one. 0 takes all cores."""
    kv_cache_tokens: Annotated[int, Field(ge=64)] = 16384
    """Tokens the draft model's KV cache holds, over all users."""
    connect_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How long to wait for the verifier at the start."""
    drain_seconds: Annotated[float, Field(ge=0)] = 5.0
    """How long running generations may go on after SIGTERM."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines shown."""
