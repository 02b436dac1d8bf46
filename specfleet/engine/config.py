"""What an engine is told."""

from __future__ import annotations

from dataclasses import dataclass

from specfleet.core.errors import ConfigurationError
from specfleet.core.step import PAGE_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What an engine is told; what it finds out is on the engine itself."""

    model: str
    """Folder with config.json and weights, or a Hugging Face id."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto: float32 on the CPU, else the checkpoint's."""
    kv_cache_tokens: int | None = None
    """Room for this many tokens in all sequences together, the prefix cache included; None takes what a GPU has free, and
    16,384 on the CPU."""
    attention: str = "auto"
    """sdpa, numba, triton, varlen, or auto: `attention.CHOICES`, the first that runs."""
    quantize: str | None = None
    """int8, int4 or auto (`quantize.choices`), for models that only draft."""
    threads: int | None = None
    """torch's CPU threads; None leaves its default."""
    seed: int | None = None
    """Seed of the unseeded rule's generator; None takes one from the operating system."""
    deterministic: bool = False
    """Compute in passes of one shape (64 tokens) and, with triton and varlen, without splitting keys: a token's logits depend
    then less, on most kernels not at all, on what else is in the step. Costs a pass of 64 tokens for every step."""
    graphs: bool | None = None
    """Run steps of up to 64 sequences and 512 tokens from CUDA graphs, captured at start. None: on CUDA with attention triton.
    True where there is no CUDA pads and buffers in the same way, and captures nothing: for tests."""

    def __post_init__(self) -> None:
        if self.kv_cache_tokens is not None and self.kv_cache_tokens < PAGE_SIZE:
            raise ConfigurationError(f"kv_cache_tokens is {self.kv_cache_tokens}, must be at least {PAGE_SIZE}")
        if self.threads is not None and self.threads < 1:
            raise ConfigurationError(f"threads is {self.threads}, must be at least 1")
