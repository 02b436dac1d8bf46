"""The verifier's configuration: file, environment, then flags (specfleet.core.config)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from specfleet.core.config import HostPort, OptionalHostPort


class VerifierConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """Target model: a folder, or a hub id."""
    listen: HostPort = "127.0.0.1:7600"
    """HOST:PORT for gRPC; port 0 takes any free one."""
    metrics: OptionalHostPort = "127.0.0.1:7601"
    """HOST:PORT for Prometheus metrics; empty for none."""
    name: str = ""
    """Name of the served model in requests and figures; the last part of its path by default."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format; auto is float32 on the CPU and the model's own on a GPU."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of the model; 0 takes half of the cores, for threads that spin and everything else disturb each other."""
    kv_cache_tokens: Annotated[int, Field(ge=64)] = 16384
    """Tokens the KV cache holds, over all sessions."""
    max_step_tokens: Annotated[int, Field(ge=16)] = 512
    """Most tokens in one step; longer prompts are prefilled in chunks."""
    max_sessions: Annotated[int, Field(ge=1)] = 256
    """Sessions open at a time; more are refused with a time to come back."""
    speculation: str = "fair-goodput"
    """Speculation policy: fair-goodput, goodspeed:C, smartspec, ladder, fixed:K, stream, none, random."""
    batching: str = "fifo"
    """Batching policy: fifo."""
    profile: Path | None = None
    """Step-time profile of this machine and model; without one the scheduler learns from scratch."""
    draft_wait_seconds: Annotated[float, Field(gt=0)] = 1.0
    """How long a round waits for its draft before the verifier decodes without it."""
    idle_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A stream that neither opens nor takes its verdicts for so long is ended."""
    drain_seconds: Annotated[float, Field(ge=0)] = 5.0
    """How long running generations may go on after SIGTERM."""
    deterministic: bool = False
    """On a GPU, kernels whose result for one sequence does not depend on the rest of the batch."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """Seed of unseeded sampling and of policies that draw; from the system by default."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines shown."""
