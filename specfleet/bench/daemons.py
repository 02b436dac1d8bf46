"""Figures that only the daemons know, from their metrics before and after a run. Everybody's traffic counts in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from specfleet.bench.scrape import DRAFTER, VERIFIER, Interval, merged, quantile, ratio

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class DaemonFigures:
    """None: not known, because nobody was asked or nobody counts it."""

    busy: float | None = None
    """Share of the time in which a verifier was in a step, the mean over verifiers."""
    mean_batch: float | None = None
    """Sequences per step."""
    step_s: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(QUANTILES))
    """Seconds of a step, read off the histogram."""
    stale: int | None = None
    """Drafted tokens that came too late to be verified."""
    discarded: int | None = None
    """Drafted tokens that were dropped before they were sent or verified."""
    wasted_drafting_s: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None


def daemon_figures(intervals: Sequence[Interval]) -> DaemonFigures:
    """Over the endpoints given, verifiers' and drafters' mixed."""
    verifiers = [one for one in intervals if one.after.prefix == VERIFIER]
    drafters = [one for one in intervals if one.after.prefix == DRAFTER]
    sequences = _total(verifiers, f"{VERIFIER}batch_sequences_sum")
    return DaemonFigures(
        busy=_busy(verifiers),
        mean_batch=ratio(sequences, _total(verifiers, f"{VERIFIER}batch_sequences_count")),
        step_s=_step_seconds(verifiers),
        stale=_whole(_total(verifiers, f"{VERIFIER}stale_draft_tokens_total")),
        discarded=_whole(_total(drafters, f"{DRAFTER}discarded_tokens_total")),
        wasted_drafting_s=_total(drafters, f"{DRAFTER}drafting_seconds_total", outcome="wasted"),
    )


def _busy(verifiers: Sequence[Interval]) -> float | None:
    shares = [one.rate(f"{VERIFIER}step_seconds_sum") for one in verifiers]
    known = [share for share in shares if share is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(shares) else None


def _step_seconds(verifiers: Sequence[Interval]) -> dict[str, float | None]:
    each = [one.buckets(f"{VERIFIER}step_seconds") for one in verifiers]
    known = [buckets for buckets in each if buckets is not None]
    steps = merged(known) if len(known) == len(each) else []
    return {name: quantile(q, steps) for name, q in QUANTILES.items()}


def _total(intervals: Sequence[Interval], name: str, **labels: str) -> float | None:
    """None also where one of several does not know."""
    each = [one.total(name, **labels) for one in intervals]
    known = [value for value in each if value is not None]
    return math.fsum(known) if known and len(known) == len(each) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
