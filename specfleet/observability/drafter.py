"""The drafter's metrics. Ratios are PromQL, for example

drafting speed   rate(specfleet_drafter_drafted_tokens_total[5m]) / rate(specfleet_drafter_drafting_seconds_total[5m])
share of time in a mode   rate(specfleet_drafter_mode_seconds_total{mode="local"}[5m])
share of wasted drafting   rate(specfleet_drafter_drafting_seconds_total{outcome="wasted"}[5m])
                           / ignoring(outcome) sum without (outcome) (rate(specfleet_drafter_drafting_seconds_total[5m]))
share of a fate            rate(specfleet_drafter_settled_tokens_total{fate="refused"}[5m])
                           / ignoring(fate) sum without (fate) (rate(specfleet_drafter_settled_tokens_total[5m]))

Of the drafted tokens, those that are not settled yet are ahead of their texts: drafted_tokens_total - settled_tokens_total.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from specfleet.core.types import FinishReason, Mode
from specfleet.observability.registry import SECONDS, build_info

PREFIX = "specfleet_drafter"
SPECULATORS = ("model", "ngram", "hybrid", "runner-up")
DISCARDS = ("contradicted", "overtaken", "ended")
FATES = ("accepted", "refused", "stale", "trimmed", "discarded")
OUTCOMES = ("used", "wasted")
STOPS = ("right", "premature")
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
        self._fates = counter("settled_tokens", "Guesses by what became of them.", "fate")
        self._seconds = counter("drafting_seconds", "Time spent on guesses, by whether they were of use.", "outcome")
        self._ahead = counter("ahead_tokens", "Guesses that assumed a verdict still to come, by their use.", "outcome")
        self._stops = counter(
            "early_stops", "Drafts ended before their grant: right where something was refused all the same.", "outcome"
        )
        self._calibration = Gauge(
            f"{PREFIX}_calibration_error", "Of the estimated chance that a guess is right, expected.", registry=registry
        )
        self._step = histogram("draft_step_seconds", "Time to guess one token, waiting for others' included.")
        self._round_trip = histogram("round_trip_seconds", "From a draft sent to its verdict.")
        self._network = histogram(
            "network_seconds", "From opening a session to its answer, less the verifier's own time."
        )
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
        for fate in FATES:
            self._fates.labels(fate)
        for outcome in OUTCOMES:
            self._seconds.labels(outcome)
            self._ahead.labels(outcome)
        for stop in STOPS:
            self._stops.labels(stop)
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
        if tokens and seconds:
            self._step.observe(seconds / tokens)

    def discarded(self, reason: str, tokens: int) -> None:
        self._discarded.labels(reason).inc(tokens)

    def fate(self, fate: str, tokens: int, seconds: float, used: bool) -> None:
        self._fates.labels(fate).inc(tokens)
        self._seconds.labels("used" if used else "wasted").inc(seconds)

    def ahead(self, tokens: int, used: bool) -> None:
        self._ahead.labels("used" if used else "wasted").inc(tokens)

    def early_stop(self, right: bool) -> None:
        self._stops.labels("right" if right else "premature").inc()

    def calibration(self, error: float) -> None:
        self._calibration.set(error)

    def round_trip(self, seconds: float) -> None:
        self._round_trip.observe(seconds)

    def network(self, seconds: float) -> None:
        self._network.observe(seconds)

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
