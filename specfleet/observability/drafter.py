"""The drafter's metrics. Ratios are PromQL, for example

drafting speed   rate(specfleet_drafter_drafted_tokens_total[5m]) / rate(specfleet_drafter_drafting_seconds_total[5m])
share of time in a mode   rate(specfleet_drafter_mode_seconds_total{mode="local"}[5m])
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from specfleet.core.types import FinishReason, Mode
from specfleet.observability.registry import SECONDS, build_info

PREFIX = "specfleet_drafter"
SPECULATORS = ("model", "ngram")
DISCARDS = ("contradicted", "overtaken")
SWITCHES = ("unreachable", "draining")


class DrafterMetrics:
    """Implements the drafter's observer. Every labelled series exists from the start, at zero."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", text, buckets=SECONDS, registry=registry)

        self._requests = counter("requests", "Generations that ended.", "finish_reason")
        self._drafted = counter("drafted_tokens", "Tokens guessed.", "speculator")
        self._discarded = counter("discarded_tokens", "Guesses dropped before they were verified.", "reason")
        self._step = histogram("draft_step_seconds", "Time to guess one token, waiting for others' included.")
        self._round_trip = histogram("round_trip_seconds", "From a draft sent to its verdict.")
        self._first = histogram("time_to_first_token_seconds", "From a request to its first token.")
        self._per_token = histogram("time_per_output_token_seconds", "Between tokens behind the first.")
        self._mode = counter("mode_seconds", "Time spent in each mode.", "mode")
        self._switches = counter(
            "verifier_switches", "Times that a verifier was left and generations went to others.", "reason"
        )
        self._resumes = counter(
            "resumes", "Generations that went on with another session after they lost their verifier."
        )
        self._sessions = Gauge(f"{PREFIX}_sessions", "Open sessions.", registry=registry)
        for reason in FinishReason:
            self._requests.labels(reason.value)
        for speculator in SPECULATORS:
            self._drafted.labels(speculator)
        for discard in DISCARDS:
            self._discarded.labels(discard)
        for switch in SWITCHES:
            self._switches.labels(switch)
        for mode in Mode:
            self._mode.labels(mode.value)
        build_info(registry, PREFIX)

    def session_opened(self) -> None:
        self._sessions.inc()

    def session_finished(self, reason: FinishReason) -> None:
        self._sessions.dec()
        self._requests.labels(reason.value).inc()

    def drafted(self, speculator: str, tokens: int, seconds: float) -> None:
        self._drafted.labels(speculator).inc(tokens)
        if tokens:
            self._step.observe(seconds / tokens)

    def discarded(self, reason: str, tokens: int) -> None:
        self._discarded.labels(reason).inc(tokens)

    def round_trip(self, seconds: float) -> None:
        self._round_trip.observe(seconds)

    def mode_time(self, mode: Mode, seconds: float) -> None:
        self._mode.labels(mode.value).inc(seconds)

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def tokens(self, count: int, seconds: float) -> None:
        for _ in range(count):
            self._per_token.observe(seconds / count)

    def verifier_switched(self, reason: str) -> None:
        self._switches.labels(reason).inc()

    def resumed(self) -> None:
        self._resumes.inc()
