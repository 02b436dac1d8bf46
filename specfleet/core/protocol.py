"""What a Verify stream carries, as values (architecture.md, section 3).

On the wire they are `specfleet.v1` messages; over the simulator's in-memory links they travel as they are. Positions are
absolute (index in prompt + output) and messages idempotent: a repeated, late or overlapping draft is harmless. Those of which
there are many are named tuples, which are made in a third of a frozen dataclass's time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from specfleet.core.records import made
from specfleet.core.step import Alternative, DraftDistribution
from specfleet.core.types import (
    PROTOCOL_VERSION,
    FinishReason,
    Grant,
    Load,
    Mode,
    ModelInfo,
    SamplingParams,
    TokenKind,
    TopLogprobs,
    Usage,
)

MAX_DRAFT_TOKENS = 256
"""Most tokens in one Draft message."""
MAX_ALTERNATIVES = 64
"""Most alternatives in one Draft message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    prompt: tuple[int, ...]
    sampling: SamplingParams
    output: tuple[int, ...] = ()
    request_id: str = ""
    service_class: str = ""
    model: str = ""
    vocabulary_digest: bytes = b""
    vocabulary_checksums: bytes = b""
    can_draft: bool = True
    draft_seconds_per_token: float = 0.0
    round_trip_seconds: float = 0.0
    protocol_version: int = PROTOCOL_VERSION


class Draft(NamedTuple):
    """ "The tokens from `position` on are these", said when `confirmed` tokens were known to be committed."""

    position: int
    tokens: tuple[int, ...]
    confirmed: int
    last: bool = False
    q: tuple[DraftDistribution, ...] | None = None
    draft_seconds: float = 0.0
    survival: tuple[float, ...] | None = None
    """Estimated chance that each token is accepted, given all text before `position`; None where nothing is known."""
    alternatives: tuple[Alternative, ...] = ()
    """Second guesses for places of `tokens`; match rule only."""
    beside: bool = False
    """Another branch than the one that waits, kept beside it until the text has decided between them; match rule only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    position: int
    tested: int
    accepted: int
    draft_seconds_per_token: float = 0.0


@dataclass(frozen=True, slots=True)
class Close:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    grant: Grant
    model: ModelInfo
    prompt_tokens: int
    cached_tokens: int
    verifier: str
    waited_seconds: float = 0.0
    """From Open's arrival to this answer: what is left of the drafter's wait was the way."""


class Verdict(NamedTuple):
    """Tokens from `position` on are committed: `accepted` of `drafted` verified ones, an alternative if one was right where
    the draft was first refused, and one of the target's own."""

    position: int
    tokens: tuple[int, ...]
    drafted: int
    accepted: int
    grant: Grant
    mode: Mode
    logprobs: tuple[float, ...] | None = None
    trimmed: int = 0
    """Drafted tokens that waited when the step began, were left out of it, and are contradicted by what it committed."""
    alternatives: int = 0
    """How many were verified beside the draft."""
    alternative_accepted: bool = False
    top_logprobs: tuple[TopLogprobs, ...] | None = None

    def granted(self, grant: Grant) -> Verdict:
        """The same with this grant."""
        return made(Verdict, (*self[:4], grant, *self[5:]))

    @property
    def verified(self) -> int:
        """Guesses in all, alternatives included."""
        return self.drafted + self.alternatives

    @property
    def right(self) -> int:
        """Guesses that are text now: the first so many of `tokens`."""
        return self.accepted + self.alternative_accepted

    @property
    def own(self) -> TokenKind:
        """What the target's own token is, behind `right` others."""
        if not self.drafted:
            return TokenKind.TARGET
        full = self.alternative_accepted or self.accepted == self.drafted
        return TokenKind.BONUS if full else TokenKind.RECOVERED


@dataclass(frozen=True, slots=True)
class Finished:
    reason: FinishReason
    usage: Usage


VerifyRequest = Open | Draft | Shadow | Close
VerifyResponse = Opened | Verdict | Finished


class ClientStream(Protocol):
    """A drafter's end of one Verify stream. Failures come as SpecfleetError."""

    async def send(self, message: VerifyRequest) -> None: ...

    async def receive(self) -> VerifyResponse | None:
        """The next message, None at the end of the stream."""
        ...

    def cancel(self) -> None:
        """Give the stream up; the verifier frees what it held within one step."""
        ...


class ServerStream(Protocol):
    """A verifier's end of one Verify stream."""

    async def receive(self) -> VerifyRequest | None:
        """The next message, None when the drafter will send no more."""
        ...

    async def send(self, message: VerifyResponse) -> None: ...


class VerifierConnection(Protocol):
    """A drafter's way to one verifier."""

    @property
    def target(self) -> str:
        """Its address, for people."""
        ...

    async def verify(self) -> ClientStream: ...

    async def model(self) -> ModelInfo: ...

    async def load(self) -> Load: ...

    async def tokenizer_files(self) -> dict[str, bytes]: ...

    async def close(self) -> None: ...
