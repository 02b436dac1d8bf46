"""The verifier's metrics. Ratios are PromQL, not gauges, for example

acceptance rate        rate(specfleet_verifier_accepted_tokens_total[5m]) / rate(specfleet_verifier_draft_tokens_total[5m])
mean accepted length   1 + rate(specfleet_verifier_accepted_tokens_total[5m]) / rate(specfleet_verifier_rounds_total[5m])
step prediction error  rate(specfleet_verifier_step_relative_error_total[5m]) / rate(specfleet_verifier_step_seconds_count[5m])
mean step              rate(specfleet_verifier_step_seconds_sum[5m]) / rate(specfleet_verifier_step_seconds_count[5m])
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from specfleet.core.protocol import Verdict
from specfleet.core.types import FinishReason, Mode, TokenKind
from specfleet.observability.registry import COUNTS, SECONDS, build_info

PREFIX = "specfleet_verifier"
POSITIONS = 32
"""Drafted positions counted one by one; the last one takes the rest."""
REJECTIONS = (
    "invalid_argument",
    "prompt_too_long",
    "model_mismatch",
    "unknown_model",
    "overloaded",
    "quota_exceeded",
    "unavailable",
)
RESUMPTIONS = ("accepted", "refused")
REPORTS = ("draft_seconds", "round_trip")
DECISIONS = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
"""Buckets of controller_seconds: deciding is to be nothing beside a step."""


class Gauges(Protocol):
    """What is read off when Prometheus scrapes."""

    def sessions(self) -> dict[str, int]: ...

    def queue(self) -> dict[str, int]: ...

    def kv_pages(self) -> dict[str, int]: ...

    def prefix_cache(self) -> tuple[int, int]:
        """Queries and hits, in tokens."""
        ...

    def evictions(self) -> dict[str, int]:
        """Since the start, by reason: sessions "preempted", and pages of the prefix "cache" taken for something else."""
        ...

    def price(self) -> float:
        """Of a second of the verifier, in weighted tokens."""
        ...

    def fairness(self) -> float:
        """Jain's index over identities' goodput."""
        ...


class VerifierMetrics:
    """Implements the verifier's observer. Every labelled series exists from the start, at zero."""

    def __init__(self, registry: CollectorRegistry, classes: tuple[str, ...] = ("",)) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", text, labels, buckets=buckets, registry=registry)

        self._requests = counter("requests", "Generations that ended.", "slo_class", "finish_reason")
        self._rounds = counter("rounds", "Verifications of at least one drafted token.")
        self._draft = counter("draft_tokens", "Drafted tokens that were verified.")
        self._accepted = counter("accepted_tokens", "Drafted tokens that were accepted.")
        self._per_position = counter(
            "accepted_tokens_per_position", "Accepted tokens by place in the draft.", "position"
        )
        self._recovered = counter("recovered_tokens", "Tokens of the target's own where a draft was refused.")
        self._bonus = counter("bonus_tokens", "Tokens of the target's own behind a draft accepted in full.")
        self._target_only = counter("target_only_tokens", "Tokens decoded with no draft to verify.")
        self._stale = counter("stale_draft_tokens", "Drafted tokens that came too late to be of use.")
        self._step = histogram("step_seconds", "Duration of a step.", SECONDS)
        self._predicted = histogram("step_predicted_seconds", "Duration of a step as it was predicted.", SECONDS)
        self._error = counter("step_relative_error", "Sum over steps of |predicted / actual - 1|.")
        self._alone = counter(
            "step_target_only_seconds", "Duration that steps would have had without drafts, by the model."
        )
        self._queued = counter(
            "queued_seconds", "Time that sessions with a verdict had been left out of steps, summed."
        )
        self._sequences = histogram("batch_sequences", "Sequences in a step.", COUNTS)
        self._tokens = histogram("batch_tokens", "Tokens in a step.", COUNTS)
        self._wait = histogram("wait_seconds", "Time a ready session waited for its step.", SECONDS)
        self._length = histogram("speculation_length", "Granted speculation lengths.", COUNTS[:7], "slo_class")
        self._switches = counter("mode_switches", "Changes of a session's mode.", "from", "to")
        self._resumes = counter("resumes", "Sessions asked for with committed output.", "outcome")
        self._goodput = counter("goodput_tokens", "Tokens of requests whose class was kept.", "slo_class")
        self._slo = counter("slo_requests", "Requests served to their end.", "slo_class", "met")
        self._ignored = counter("ignored_reports", "What drafters said of themselves and cannot be.", "report")
        self._controller = histogram("controller_seconds", "Time of one step's decisions.", DECISIONS)
        self._rejected = counter("rejected", "Sessions refused.", "reason")
        self._zero(classes)
        build_info(registry, PREFIX)

    def _zero(self, classes: tuple[str, ...]) -> None:
        for name in classes:
            self._length.labels(name)
            self._goodput.labels(name)
            for met in ("true", "false"):
                self._slo.labels(name, met)
            for reason in FinishReason:
                self._requests.labels(name, reason.value)
        for position in range(POSITIONS):
            self._per_position.labels(str(position))
        for old in Mode:
            for new in Mode:
                if old is not new:
                    self._switches.labels(old.value, new.value)
        for rejection in REJECTIONS:
            self._rejected.labels(rejection)
        for resumption in RESUMPTIONS:
            self._resumes.labels(resumption)
        for report in REPORTS:
            self._ignored.labels(report)

    def speculation(self) -> dict[str, Counter]:
        """What vLLM counts, too: rounds, drafted and accepted tokens, accepted ones by position."""
        return {
            "drafts": self._rounds,
            "draft_tokens": self._draft,
            "accepted_tokens": self._accepted,
            "accepted_tokens_per_pos": self._per_position,
        }

    def session_opened(self, resumed: bool) -> None:
        if resumed:
            self._resumes.labels("accepted").inc()

    def session_rejected(self, reason: str, resumed: bool) -> None:
        self._rejected.labels(reason).inc()
        if resumed:
            self._resumes.labels("refused").inc()

    def session_finished(self, service_class: str, reason: FinishReason) -> None:
        self._requests.labels(service_class, reason.value).inc()

    def step(self, seconds: float, predicted: float, sequences: int, tokens: int) -> None:
        self._step.observe(seconds)
        self._predicted.observe(predicted)
        if seconds > 0.0:
            self._error.inc(abs(predicted / seconds - 1.0))
        self._sequences.observe(sequences)
        self._tokens.observe(tokens)

    def alone(self, step_seconds: float, queued_seconds: float) -> None:
        self._alone.inc(step_seconds)
        self._queued.inc(queued_seconds)

    def verdict(self, service_class: str, verdict: Verdict, wait: float) -> None:
        self._wait.observe(wait)
        if not verdict.drafted:
            self._target_only.inc(len(verdict.tokens))
            return
        self._rounds.inc()
        self._draft.inc(verdict.verified)
        self._accepted.inc(verdict.right)
        for position in range(verdict.right):
            self._per_position.labels(str(min(position, POSITIONS - 1))).inc()
        if len(verdict.tokens) > verdict.right:
            (self._bonus if verdict.own is TokenKind.BONUS else self._recovered).inc()

    def granted(self, service_class: str, previous: Mode, mode: Mode, length: int) -> None:
        self._length.labels(service_class).observe(length)
        if previous is not mode:
            self._switches.labels(previous.value, mode.value).inc()

    def served(self, service_class: str, tokens: int, met: bool) -> None:
        self._slo.labels(service_class, str(met).lower()).inc()
        if met:
            self._goodput.labels(service_class).inc(tokens)

    def ignored(self, report: str) -> None:
        self._ignored.labels(report).inc()

    def decided(self, seconds: float) -> None:
        self._controller.observe(seconds)

    def stale(self, tokens: int) -> None:
        self._stale.inc(tokens)


class VerifierGauges:
    """A prometheus-client collector over what the verifier knows at the moment of a scrape."""

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        yield self._family("sessions", "Open sessions.", "state", self._gauges.sessions())
        yield self._family("queue_length", "Sessions that wait.", "kind", self._gauges.queue())
        yield self._family("kv_pages", "KV pages.", "state", self._gauges.kv_pages())
        yield GaugeMetricFamily(
            f"{PREFIX}_gpu_second_price", "Weighted tokens a second is worth.", self._gauges.price()
        )
        yield GaugeMetricFamily(f"{PREFIX}_fairness_jain", "Jain's index of goodput.", self._gauges.fairness())
        evictions = CounterMetricFamily(
            f"{PREFIX}_evictions",
            "Sessions that lost their pages (preempted), cached pages (cache).",
            labels=["reason"],
        )
        for reason, count in self._gauges.evictions().items():
            evictions.add_metric([reason], count)
        yield evictions
        for name, value in zip(("queries", "hits"), self._gauges.prefix_cache(), strict=True):
            text = f"Prefix cache {name}, in tokens."
            yield CounterMetricFamily(f"{PREFIX}_prefix_cache_{name}", text, value=value)

    @staticmethod
    def _family(name: str, text: str, label: str, values: dict[str, int]) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], value)
        return family
