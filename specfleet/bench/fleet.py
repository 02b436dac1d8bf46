"""What `specfleet status` says of a daemon: gauges as they are, rates over the interval between two scrapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specfleet.bench.scrape import DRAFTER, VERIFIER, Interval, Scrape, ratio
from specfleet.core.errors import ConnectionError_

TOKEN_KINDS = ("accepted", "recovered", "bonus", "target_only")

Look = Mapping[str, Scrape | ConnectionError_]
"""Every endpoint's answer at one moment."""


def fleet_status(before: Look, after: Look) -> dict[str, Any]:
    """The object that `specfleet status --json` prints; rates are per second, and None where they are not known.

    An endpoint that did not answer before has gauges and no rates yet.
    """
    rows: dict[str, list[dict[str, Any]]] = {"verifiers": [], "drafters": [], "unreachable": []}
    for address, now in after.items():
        if isinstance(now, ConnectionError_):
            rows["unreachable"].append({"address": address, "error": str(now)})
            continue
        earlier = before.get(address)
        interval = Interval(earlier, now) if isinstance(earlier, Scrape) else None
        if now.prefix == VERIFIER:
            rows["verifiers"].append(_verifier(now, interval))
        elif now.prefix == DRAFTER:
            rows["drafters"].append(_drafter(now, interval))
        else:
            rows["unreachable"].append({"address": address, "error": f"{address} has metrics, but not specfleet's"})
    return rows


def _verifier(now: Scrape, interval: Interval | None) -> dict[str, Any]:
    rounds, drafted, accepted = (
        _rise(interval, f"{VERIFIER}{name}_total") for name in ("rounds", "draft_tokens", "accepted_tokens")
    )
    return {
        "address": now.address,
        "sessions": _counts(now, f"{VERIFIER}sessions", "state"),
        "queue": _counts(now, f"{VERIFIER}queue_length", "kind"),
        "steps_per_s": _rate(interval, f"{VERIFIER}step_seconds_count"),
        "step_s": interval.mean(f"{VERIFIER}step_seconds") if interval else None,
        "mean_batch": interval.mean(f"{VERIFIER}batch_sequences") if interval else None,
        "acceptance_rate": ratio(accepted, drafted),
        "mean_drafted_length": ratio(drafted, rounds),
        "tokens_per_s": {kind: _rate(interval, f"{VERIFIER}{kind}_tokens_total") for kind in TOKEN_KINDS},
        "goodput_tokens_per_s": _rate(interval, f"{VERIFIER}goodput_tokens_total"),
        "kv_pages": _counts(now, f"{VERIFIER}kv_pages", "state"),
    }


def _drafter(now: Scrape, interval: Interval | None) -> dict[str, Any]:
    drafted = _rise(interval, f"{DRAFTER}drafted_tokens_total")
    return {
        "address": now.address,
        "sessions": _whole(now.total(f"{DRAFTER}sessions")),
        "drafted_per_s": _rate(interval, f"{DRAFTER}drafted_tokens_total"),
        "discarded_share": ratio(_rise(interval, f"{DRAFTER}discarded_tokens_total"), drafted),
        "round_trip_s": interval.mean(f"{DRAFTER}round_trip_seconds") if interval else None,
    }


def _rise(interval: Interval | None, name: str) -> float | None:
    return interval.total(name) if interval else None


def _rate(interval: Interval | None, name: str) -> float | None:
    return interval.rate(name) if interval else None


def _counts(now: Scrape, name: str, label: str) -> dict[str, int]:
    return {value: round(count) for value, count in now.by(name, label).items()}


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
