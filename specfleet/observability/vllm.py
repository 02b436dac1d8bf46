"""vLLM's names for what speculation did (`--vllm-metrics`), so that dashboards and tools made for vLLM read a verifier.

A draft is a round here: one verification of at least one drafted token. Positions count from 0 in both.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric

from specfleet.observability.verifier import VerifierMetrics

PREFIX = "vllm:spec_decode_num"
LABELS = ["model_name", "engine"]


class VllmNames:
    """A prometheus-client collector: the verifier's own counters under other names, read when they are scraped."""

    def __init__(self, metrics: VerifierMetrics, model: str) -> None:
        self._metrics = metrics
        self._values = [model, "0"]

    def collect(self) -> Iterator[Metric]:
        for name, counter in self._metrics.speculation().items():
            (family,) = counter.collect()
            samples = [sample for sample in family.samples if sample.name.endswith("_total")]
            extra = sorted({label for sample in samples for label in sample.labels})
            renamed = CounterMetricFamily(f"{PREFIX}_{name}", family.documentation, labels=[*LABELS, *extra])
            for sample in samples:
                renamed.add_metric([*self._values, *(sample.labels[label] for label in extra)], sample.value)
            yield renamed
