"""What a run counts. Memory grows with requests, never with rounds: figures of rounds are sums and histograms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

BINS = 100
"""Of a histogram per factor e: one per cent each."""


@dataclass(slots=True)
class Row:
    """One request, from the moment it was issued to its end."""

    request: int
    client: int
    tier: str
    service_class: str
    verifier: str
    prompt_tokens: int
    output_tokens: int
    issued: float
    """Seconds of the run; when it was due, in an open loop."""
    first: float | None = None
    """When its first token was delivered."""
    last: float | None = None
    """When its newest was."""
    tokens: int = 0
    """Delivered."""
    cached: int = 0
    """Tokens of its prompt that the verifier had in its prefix cache."""
    verdicts: int = 0
    rounds: int = 0
    """Verdicts with drafted tokens."""
    drafted: int = 0
    verified: int = 0
    accepted: int = 0
    stale: int = 0
    """Sent, and not verified: overtaken by the text, or on their way when it ended."""
    discarded: int = 0
    """Not even sent."""
    refusals: int = 0
    resumes: int = 0
    """Times that it went on after its verifier was lost."""
    outcome: str = ""
    """finished, refused, lost (with its verifier, and nobody to go on with) or unfinished; empty while it runs."""

    @property
    def refused(self) -> int:
        """Drafted tokens that were verified and not accepted, or cut off with the text's end."""
        return self.verified - self.accepted

    @property
    def ttft(self) -> float:
        return self.first - self.issued if self.first is not None else math.inf

    @property
    def e2e(self) -> float:
        return self.last - self.issued if self.last is not None else math.inf

    @property
    def tpot(self) -> float:
        """Seconds per delivered token after the first."""
        return (self.e2e - self.ttft) / (self.tokens - 1) if self.tokens > 1 else 0.0

    def settle(self, drafted: int, sent: int) -> None:
        """Its drafter is done: what became of every drafted token. Raises AssertionError where the books do not balance."""
        self.drafted += drafted
        self.discarded += drafted - sent
        self.stale = self.drafted - self.discarded - self.verified
        assert self.discarded >= 0, f"more tokens were sent than drafted: {self}"
        assert self.stale >= 0, f"more tokens were verified than sent: {self}"
        assert 0 <= self.accepted <= self.verified, f"more tokens were accepted than verified: {self}"


class Histogram:
    """Counts of positive values in bins of one per cent."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: Counter[int] = Counter(counts or {})

    def add(self, value: float) -> None:
        self.counts[int(math.log(max(value, 1e-9)) * BINS)] += 1

    def less(self, before: Histogram) -> Histogram:
        """What came since `before` was copied."""
        return Histogram(self.counts - before.counts)

    def quantile(self, share: float) -> float | None:
        """Within one per cent; None of nothing."""
        left = share * sum(self.counts.values())
        for at in sorted(self.counts):
            left -= self.counts[at]
            if left <= 0:
                return math.exp((at + (0.5 if at >= 0 else -0.5)) / BINS)
        return None


@dataclass(slots=True)
class Tally:
    """Sums that only go up; a window's figures are the difference of two copies."""

    tokens: int = 0
    """Delivered."""
    verdicts: int = 0
    rounds: int = 0
    verified: int = 0
    accepted: int = 0
    stale: int = 0
    discarded: int = 0
    steps: int = 0
    step_sequences: int = 0
    busy_seconds: float = 0.0
    drafting_seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    runs: Counter[int] = field(default_factory=Counter)
    """Rounds by accepted tokens."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Rounds by verified tokens."""
    step_seconds: Histogram = field(default_factory=Histogram)

    def copy(self) -> Tally:
        return self.less(Tally())

    def less(self, before: Tally) -> Tally:
        """What came since `before`."""
        new = Tally()
        for name in Tally.__slots__:
            own, old = getattr(self, name), getattr(before, name)
            setattr(new, name, own.less(old) if isinstance(own, Histogram) else own - old)
        return new
