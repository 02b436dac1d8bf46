"""Expressions over our metrics, written once: rates, means, shares and quantiles of whichever daemons are chosen."""

from __future__ import annotations

from collections.abc import Sequence

WINDOW = "$__rate_interval"
VERIFIER = "specfleet_verifier_"
DRAFTER = "specfleet_drafter_"
QUANTILES = (0.5, 0.95, 0.99)


def chosen(metric: str, **labels: str) -> str:
    """The series of `metric` of the daemons that the dashboard's variables choose; a label's value is a regex."""
    if metric.startswith(VERIFIER):
        labels = {"instance": "$verifier", **labels}
    elif metric.startswith(DRAFTER):
        labels = {"instance": "$drafter", **labels}
    elif metric.startswith(("grpc_", "http_", "process_")):
        labels = {"job": "specfleet-(verifier|drafter)", **labels}
    return metric + "{" + ", ".join(f'{name}=~"{value}"' for name, value in labels.items()) + "}"


def total(metric: str, by: Sequence[str] = (), **labels: str) -> str:
    """Sum of gauges."""
    return f"sum{_by(by)}({chosen(metric, **labels)})"


def rate(metric: str, by: Sequence[str] = (), **labels: str) -> str:
    """Rise per second of counters, summed."""
    return f"sum{_by(by)}(rate({chosen(metric, **labels)}[{WINDOW}]))"


def mean(metric: str, by: Sequence[str] = (), **labels: str) -> str:
    """Of what a histogram observed."""
    return f"{rate(f'{metric}_sum', by, **labels)} / {rate(f'{metric}_count', by, **labels)}"


def quantile(q: float, metric: str, by: Sequence[str] = (), **labels: str) -> str:
    """Of what a histogram observed, no more exact than its buckets are narrow."""
    return f"histogram_quantile({q:g}, {rate(f'{metric}_bucket', ('le', *by), **labels)})"


def quantiles(metric: str, **labels: str) -> tuple[tuple[str, str], ...]:
    """Median, p95 and p99 with their legends."""
    return tuple((quantile(q, metric, **labels), f"p{100 * q:g}") for q in QUANTILES)


def share(metric: str, label: str, by: Sequence[str] = (), **labels: str) -> str:
    """Each value of `label` as a share of all of them."""
    return f"{rate(metric, (*by, label), **labels)} / ignoring ({label}) group_left {rate(metric, by, **labels)}"


def _by(labels: Sequence[str]) -> str:
    return f" by ({', '.join(labels)}) " if labels else ""
