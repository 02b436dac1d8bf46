"""Plain values that cross package borders. The glossary of the field is code here: mode, grant, sampling, speculation.

p is the target model, q the draft model. A round *drafts* tokens with q, *accepts* a prefix of them, and adds one token of
the target's own: *recovered* where the draft was refused, *bonus* where all of it was accepted. So a round always commits
accepted + 1 tokens.
"""

from __future__ import annotations

import enum
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from specfleet.core.errors import ConfigurationError, InvalidRequest

PROTOCOL_VERSION = 1
"""Version of the wire contract spoken by this code; `Open` carries it."""

MIN_PROTOCOL_VERSION = 1
"""The oldest peer this code still understands."""

DRAFT_SUPPORT_LIMIT = 64
"""Largest support of a draft distribution on the wire (architecture.md, section 3)."""


class Mode(enum.Enum):
    """Who does what in a session (architecture.md, section 3)."""

    LOCAL = "local"
    """The verifier decodes alone, a token a step."""
    STREAM = "stream"
    """The verifier never waits; it verifies whatever drafted tokens have arrived that continue the text."""
    ROUND = "round"
    """The verifier waits for the granted number of drafted tokens."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What the verifier asks of a drafter next: the mode, and the speculation length in tokens (0 in LOCAL)."""

    mode: Mode
    length: int = 0
    alternatives: int = 0
    """Alternatives that may be sent beside the draft; 0 under load."""
    token_cost: float = 0.0
    """What one more token in a step costs all sessions together, in tokens of text: a guess less likely than that to be
    accepted is not worth its verification. 0 where it is not known."""


LOCAL = Grant(Mode.LOCAL)
"""The grant that asks for no draft."""


class FinishReason(enum.Enum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class TokenKind(enum.Enum):
    """How a committed token came about."""

    ACCEPTED = "accepted"
    RECOVERED = "recovered"
    BONUS = "bonus"
    TARGET = "target"
    """Decoded by the target with no draft to verify."""


TopLogprobs = tuple[tuple[int, float], ...]
"""The likeliest tokens in one place, likeliest first: ids and log-probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. Same meaning as in transformers' logits processors, applied in the order
    temperature, top_k, top_p, min_p. Greedy is `temperature=0`."""

    max_tokens: int = 128
    """Most tokens to generate, at least 1."""
    temperature: float = 1.0
    """0 takes the likeliest token; up to 100."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with at least this probability together, in (0, 1]."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest, in [0, 1]."""
    seed: int | None = None
    """With a seed, the text is a function of prompt, parameters and seed alone (64 bits, unsigned)."""
    stop: tuple[str, ...] = ()
    """Text ends before the first of these strings (at most 16)."""
    stop_token_ids: tuple[int, ...] = ()
    """Text ends at any of these ids, beside the model's own end-of-text ids."""
    ignore_eos: bool = False
    """Go on past the model's own end-of-text ids."""
    logprobs: bool = False
    """Return the target's log-probability of each token, before temperature and truncation."""
    top_logprobs: int = 0
    """And those of the so many likeliest tokens in its place, at most 20; needs `logprobs`."""

    MAX_TEMPERATURE = 100.0
    MAX_STOP_STRINGS = 16
    MAX_TOP_LOGPROBS = 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        self._check()

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def match_rule(self) -> bool:
        """True where acceptance is by match (greedy or seeded), False where it is by rejection."""
        return self.greedy or self.seed is not None

    def _check(self) -> None:
        def demand(ok: bool, name: str, value: object, limit: str) -> None:
            if not ok:
                raise InvalidRequest.field(name, f"is {value!r}, must be {limit}")

        demand(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        demand(
            math.isfinite(self.temperature) and 0.0 <= self.temperature <= self.MAX_TEMPERATURE,
            "temperature",
            self.temperature,
            f"between 0 and {self.MAX_TEMPERATURE:g}",
        )
        demand(self.top_k >= 0, "top_k", self.top_k, "0 (all) or more")
        demand(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")
        demand(0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "between 0 and 1")
        most = self.MAX_TOP_LOGPROBS
        demand(0 <= self.top_logprobs <= most, "top_logprobs", self.top_logprobs, f"from 0 to {most}")
        demand(self.logprobs or not self.top_logprobs, "top_logprobs", self.top_logprobs, "0 without logprobs")
        demand(self.seed is None or 0 <= self.seed < 2**64, "seed", self.seed, "an unsigned 64-bit integer")
        demand(
            len(self.stop) <= self.MAX_STOP_STRINGS, "stop", len(self.stop), f"{self.MAX_STOP_STRINGS} strings at most"
        )
        demand(all(self.stop), "stop", "", "strings of at least one character")
        demand(all(0 <= t < 2**32 for t in self.stop_token_ids), "stop_token_ids", self.stop_token_ids, "token ids")


@dataclass(frozen=True, slots=True)
class ServiceClass:
    """What a kind of request is promised. A request names its class; targets that are None promise nothing."""

    name: str = ""
    ttft_seconds: float | None = None
    """From opening to the first token."""
    tpot_seconds: float | None = None
    """Per token after the first."""
    weight: float = 1.0
    """What its tokens count in shares, relative to other classes."""

    def __post_init__(self) -> None:
        for field_, value in (("ttft", self.ttft_seconds), ("tpot", self.tpot_seconds), ("weight", self.weight)):
            if value is not None and not (math.isfinite(value) and value > 0.0):
                unit = "" if field_ == "weight" else " of seconds"
                raise ConfigurationError(
                    f"service class {self.name!r}: {field_} is {value:g}, must be a number{unit} above 0"
                )

    @property
    def targets(self) -> bool:
        """Whether it promises anything."""
        return self.ttft_seconds is not None or self.tpot_seconds is not None

    def met(self, ttft_seconds: float, tpot_seconds: float) -> bool:
        """Whether a request with these times has got what was promised."""
        in_time = self.ttft_seconds is None or ttft_seconds <= self.ttft_seconds
        return in_time and (self.tpot_seconds is None or tpot_seconds <= self.tpot_seconds)

    def due(self, opened_at: float, first_at: float | None, emitted: int) -> float:
        """When the next token is due, infinity for never: `emitted` tokens are out, the first of them since `first_at`."""
        if first_at is None:
            return opened_at + self.ttft_seconds if self.ttft_seconds is not None else math.inf
        return first_at + emitted * self.tpot_seconds if self.tpot_seconds is not None else math.inf


BEST_EFFORT = ServiceClass()
"""The class of requests that name none: nothing is promised."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a peer needs to know of a served model."""

    name: str
    vocabulary_size: int
    vocabulary_digest: bytes
    context_length: int
    eos_token_ids: tuple[int, ...]
    software: str = ""
    policy: str = ""
    service_classes: tuple[ServiceClass, ...] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """A verifier's load, as routing needs it."""

    queue: int
    sessions: int
    free_kv_tokens: int
    step_seconds: float


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(slots=True)
class Speculation:
    """What speculation did in one generation. Plain counters; ratios are properties."""

    rounds: int = 0
    """Verifications with at least one drafted token."""
    drafted: int = 0
    """Drafted tokens that were verified."""
    accepted: int = 0
    target_only_tokens: int = 0
    """Tokens the verifier decoded with no draft to verify."""
    resumes: int = 0
    modes: dict[str, int] = field(default_factory=lambda: {mode.value: 0 for mode in Mode})
    """Verdicts by mode."""
    lengths: list[int] = field(default_factory=list)
    """Drafted tokens verified in each round."""

    @property
    def acceptance_rate(self) -> float | None:
        return self.accepted / self.drafted if self.drafted else None

    @property
    def mean_accepted_length(self) -> float | None:
        """1 + accepted per round: the recovered or bonus token counts, as in vLLM."""
        return 1 + self.accepted / self.rounds if self.rounds else None

    def to_dict(self) -> dict[str, Any]:
        """Counters and ratios as plain values."""
        ratios = {"acceptance_rate": self.acceptance_rate, "mean_accepted_length": self.mean_accepted_length}
        return asdict(self) | ratios

    def count(self, mode: Mode, drafted: int, accepted: int, committed: int) -> None:
        """Count one verdict of `drafted` verified tokens that committed `committed` tokens."""
        self.modes[mode.value] += 1
        if drafted:
            self.rounds += 1
            self.drafted += drafted
            self.accepted += accepted
            self.lengths.append(drafted)
        else:
            self.target_only_tokens += committed
