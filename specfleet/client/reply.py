"""What the SDK answers with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from specfleet.core.generation import Started
from specfleet.core.types import FinishReason, Speculation, TopLogprobs, Usage


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, as `vllm bench serve` defines them."""

    ttft_s: float
    """From sending the request to the first token; all the time there was, where none came."""
    tpot_s: float
    """Per output token after the first: (total - ttft) / (n - 1); 0 for fewer than two tokens."""
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole generation."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    speculation: Speculation
    timing: Timing
    server: Started
    """Who answered: request id, model, policy, verifier, drafter."""
    logprobs: tuple[float, ...] | None = None
    """The target's log-probability of each token, where asked for."""
    top_logprobs: tuple[TopLogprobs, ...] | None = None
    """And of the likeliest in its place, where asked for: pairs of token id and log-probability."""

    def to_dict(self) -> dict[str, Any]:
        """The object that `specfleet generate --json` prints (plain values, ready for `json.dumps`)."""
        found = {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason.value,
            "usage": asdict(self.usage),
            "timing": asdict(self.timing),
            "speculation": self.speculation.to_dict(),
            "server": {name: getattr(self.server, name) for name in ("drafter", "verifier", "model", "policy")},
        }
        if self.logprobs is not None:
            found["logprobs"] = list(self.logprobs)
        if self.top_logprobs is not None:
            found["top_logprobs"] = [[list(pair) for pair in place] for place in self.top_logprobs]
        return found


@dataclass(frozen=True, slots=True)
class Health:
    """One server's state. `ready` means that it takes generations now; `message` says why not."""

    target: str
    live: bool
    ready: bool
    message: str = ""
