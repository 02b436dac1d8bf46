"""From what a run counted to the object that `specfleet simulate --json` prints, and to the rows that people read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simulator.config import Costs
from simulator.counters import Row, Tally
from simulator.play import Played
from specfleet.bench.figures import geometric_mean, jain, percentiles
from specfleet.core.types import ServiceClass

DEFINITIONS = (
    "tokens: delivered between warm-up and duration; latencies and classes: of requests issued in it, however long they took",
    "ttft: seconds from the moment a request was due to its first token",
    "tpot: seconds per delivered token after the first, (e2e - ttft) / (n - 1); e2e: to the last token",
    "per drafter: tokens per second while it had a request under way",
    "wasted drafts: refused by the verifier, stale when they got there, discarded before they were sent",
)
SHARES = (0.5, 0.95, 0.99)


def figures(played: Played, wall_s: float) -> dict[str, Any]:
    """The object of one run. All of it but `wall_s` is a function of configuration, policy and seed."""
    config, window, seconds = played.config, played.window, played.seconds
    counted = [row for row in played.rows if row.issued >= config.warm_up]
    finished = [row for row in counted if row.outcome == "finished"]
    used = accepted_seconds(played)
    return {
        "policy": played.policy.name,
        "seed": played.seed,
        "clients": config.drafters,
        "duration_s": seconds,
        "rounds": window.rounds,
        "tokens": window.tokens,
        "tokens_per_s": window.tokens / seconds,
        "geomean_tokens_per_s": geometric_mean([speed for speed in played.speeds if speed > 0.0]),
        "min_tokens_per_s": min(played.speeds, default=None),
        "jain": jain(played.speeds),
        "ttft_s": percentiles([row.ttft for row in finished]),
        "tpot_s": percentiles([row.tpot for row in finished if row.tokens > 1]),
        "e2e_s": percentiles([row.e2e for row in finished]),
        **_service(counted, config.service_classes, seconds),
        "acceptance_rate": window.accepted / window.verified if window.verified else None,
        "mean_accepted_length": 1.0 + window.accepted / window.rounds if window.rounds else None,
        "accepted_per_position": accepted_per_position(window),
        "wasted_draft_tokens": {
            "refused": window.verified - window.accepted,
            "stale": window.stale,
            "discarded": window.discarded,
        },
        "wasted_drafting_s": max(0.0, window.drafting_seconds - used),
        "verifier": {
            # A step counts where it ends, so the window's first one may bring a little from before.
            "busy": min(1.0, window.busy_seconds / (seconds * played.verifiers)),
            "mean_batch": window.step_sequences / window.steps if window.steps else None,
            "step_s": {f"p{share * 100:g}": window.step_seconds.quantile(share) for share in SHARES},
        },
        "bytes_up": window.bytes_up,
        "bytes_down": window.bytes_down,
        "failures": sum(row.outcome != "finished" for row in counted),
        "resumes": sum(row.resumes for row in counted),
        "requests": {
            "issued": len(played.rows),
            "finished": sum(row.outcome == "finished" for row in played.rows),
            "refused": sum(row.outcome == "refused" for row in played.rows),
            "lost": sum(row.outcome == "lost" for row in played.rows),
            "unfinished": sum(row.outcome == "unfinished" for row in played.rows),
            "not_issued": played.not_issued,
        },
        "whole_run": whole_run(played),
        **({"cost": costs(played, config.costs)} if config.costs is not None else {}),
        "wall_s": wall_s,
    }


def whole_run(played: Played) -> dict[str, Any]:
    """Warm-up and drain included: the books. drafted = accepted + refused + stale + discarded."""
    total = played.total
    return {
        "ended_s": played.ended,
        "verdicts": total.verdicts,
        "rounds": total.rounds,
        "tokens": total.tokens,
        "drafted": sum(row.drafted for row in played.rows),
        "accepted": total.accepted,
        "refused": total.verified - total.accepted,
        "stale": total.stale,
        "discarded": total.discarded,
        "events": played.events,
    }


def accepted_seconds(played: Played) -> float:
    """Seconds of the window's drafting that went into accepted tokens: the accepted share of what became of tokens."""
    window = played.window
    became = window.verified + window.stale + window.discarded
    return window.drafting_seconds * window.accepted / became if became else 0.0


def accepted_per_position(tally: Tally) -> list[float]:
    """Share of rounds in which the draft's i-th token was accepted, to the longest draft's last."""
    longest = max((length for length, count in tally.lengths.items() if count > 0), default=0)
    return [sum(count for run, count in tally.runs.items() if run > place) / tally.rounds for place in range(longest)]


def attained(row: Row, classes: Mapping[str, ServiceClass]) -> bool:
    """It finished, and within its class's targets where there are any."""
    promised = classes.get(row.service_class)
    return row.outcome == "finished" and (promised is None or promised.met(row.ttft, row.tpot))


def _service(rows: Sequence[Row], classes: Sequence[ServiceClass], seconds: float) -> dict[str, Any]:
    known = {one.name: one for one in classes}
    good = [row for row in rows if attained(row, known)]
    slo = {}
    for name in sorted({row.service_class for row in rows}):
        requests = sum(row.service_class == name for row in rows)
        slo[name] = {"requests": requests, "attained": sum(row.service_class == name for row in good) / requests}
    return {
        "slo": slo,
        "goodput_requests_per_s": len(good) / seconds,
        "goodput_tokens_per_s": sum(row.tokens for row in good) / seconds,
    }


def costs(played: Played, assumed: Costs) -> dict[str, float | None]:
    """Of the window, under the stated assumptions: GPUs cost the same busy or not, and take more power in a step."""
    window, seconds, cards = played.window, played.seconds, played.gpus
    per_verifier = cards / played.verifiers
    busy = min(window.busy_seconds * per_verifier, seconds * cards)
    joules = busy * assumed.gpu_watts + (seconds * cards - busy) * assumed.gpu_idle_watts
    drafters = window.drafting_seconds * assumed.drafter_watts
    price = assumed.gpu_hour * cards * seconds / 3600.0
    tokens = window.tokens
    return {
        "per_million_tokens": price / tokens * 1e6 if tokens else None,
        "joules_per_token": (joules + drafters) / tokens if tokens else None,
        "verifier_joules_per_token": joules / tokens if tokens else None,
        "drafter_joules_per_token": drafters / tokens if tokens else None,
    }


# --- what people read --------------------------------------------------------------------------------------------------

COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], float | None], str], ...] = (
    ("tokens/s", lambda found: found["tokens_per_s"], ".1f"),
    ("per drafter", lambda found: found["geomean_tokens_per_s"], ".1f"),
    ("least", lambda found: found["min_tokens_per_s"], ".1f"),
    ("Jain", lambda found: found["jain"], ".3f"),
    ("ttft p50 ms", lambda found: _ms(found["ttft_s"]["p50"]), ".0f"),
    ("p95", lambda found: _ms(found["ttft_s"]["p95"]), ".0f"),
    ("tpot p50 ms", lambda found: _ms(found["tpot_s"]["p50"]), ".1f"),
    ("p95", lambda found: _ms(found["tpot_s"]["p95"]), ".1f"),
    ("acceptance", lambda found: found["acceptance_rate"], ".3f"),
    ("per round", lambda found: found["mean_accepted_length"], ".2f"),
    ("busy", lambda found: found["verifier"]["busy"], ".2f"),
    ("batch", lambda found: found["verifier"]["mean_batch"], ".1f"),
    ("failures", lambda found: found["failures"], "d"),
)
"""Heading, figure and form of each column beside the policy's name."""


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def mean(found: Sequence[dict[str, Any]], column: Callable[[dict[str, Any]], float | None]) -> float | None:
    """Of one column over several seeds; None where it is never known."""
    known = [value for one in found if (value := column(one)) is not None]
    return sum(known) / len(known) if known else None
