"""What a tracer knows, for those outside: totals as metrics, the newest spans as JSON beside them.

Both are there only where a daemon was told to trace. Mean seconds of a step at a phase:

    rate(specfleet_verifier_phase_seconds_total{phase="forward"}[5m]) / rate(specfleet_verifier_step_seconds_count[5m])
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric

from specfleet.core.clock import Clock
from specfleet.core.trace import Phase, Tracer

PATH = "/trace"

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""A WSGI application."""


def traced(registry: CollectorRegistry, prefix: str, clock: Clock) -> Tracer:
    """A tracer whose totals are exported."""
    tracer = Tracer(clock)
    registry.register(TraceMetrics(tracer, prefix))
    return tracer


class TraceMetrics:
    """A prometheus-client collector over a tracer's totals."""

    def __init__(self, tracer: Tracer, prefix: str) -> None:
        self._tracer = tracer
        self._prefix = prefix

    def collect(self) -> Iterator[Metric]:
        tracer = self._tracer
        yield self._family("phase_seconds", "Time of this daemon, by what it was at.", tracer.seconds)
        yield self._family("phase_spans", "How many times it was at it.", tracer.counts)
        yield self._family("round_phase_seconds", "Time that rounds waited, summed over them.", tracer.round_seconds)
        yield CounterMetricFamily(
            f"{self._prefix}_traced_rounds", "Rounds in round_phase_seconds.", value=tracer.rounds
        )

    def _family(self, name: str, text: str, values: dict[Phase, float] | dict[Phase, int]) -> CounterMetricFamily:
        family = CounterMetricFamily(f"{self._prefix}_{name}", text, labels=["phase"])
        for phase, value in values.items():
            family.add_metric([phase.value], value)
        return family


def beside(metrics: App, tracer: Tracer) -> App:
    """`metrics` and, at /trace, the newest spans: {"clock": now, "spans": [[name, start, seconds, lane, about], …]}, all in
    seconds of one clock that only this daemon knows."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != PATH:
            return metrics(environ, start_response)
        body = json.dumps({"clock": tracer.clock(), "spans": tracer.spans()}).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return app
