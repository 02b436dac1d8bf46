"""Figures from records: pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from specfleet.bench.daemons import DaemonFigures
from specfleet.bench.load import Record
from specfleet.core.types import ServiceClass

DEFINITIONS = (
    "ttft: seconds from sending a request (with --rate R: from the moment it was due) to its first token",
    "tpot: seconds per token after the first, (total - ttft) / (n - 1), total being the time to the last token (e2e)",
    "per stream: tokens per second while it was busy; a stream is a lane of the closed loop, with --rate a request",
    "goodput: what requests got that finished and kept their class's targets",
)
"""What the figures mean, for people to read beside them."""

PERCENTILES = (50, 95, 99)


def figures(
    records: Sequence[Record],
    classes: Iterable[ServiceClass],
    daemons: DaemonFigures,
    *,
    streams: int,
    seed: int,
    wall_s: float,
) -> dict[str, Any]:
    """The object that `specfleet bench --json` prints; what is not known is None.

    Percentiles and speculation are over requests that finished; tokens and streams' speeds over all that came, also for
    requests that failed midway. `streams` and `seed` are those of the plan, `wall_s` the seconds of the whole command.
    """
    finished = [record for record in records if record.finished]
    duration = max((one.ended for one in records), default=0.0) - min((one.begun for one in records), default=0.0)
    tokens = sum(record.tokens for record in records)
    return {
        "policy": ", ".join(sorted({record.policy for record in records if record.policy})),
        "seed": seed,
        "clients": streams,
        "duration_s": duration,
        "tokens": tokens,
        "tokens_per_s": _per_second(tokens, duration),
        **_streams(records),
        **_times(finished),
        **_service(records, {one.name: one for one in classes}, duration),
        **_speculation(finished, daemons),
        "verifier": {"busy": daemons.busy, "mean_batch": daemons.mean_batch, "step_s": daemons.step_s},
        "bytes_up": daemons.bytes_up,
        "bytes_down": daemons.bytes_down,
        "failures": sum(record.error is not None for record in records),
        "resumes": sum(record.speculation.resumes for record in records),
        "wall_s": wall_s,
    }


def geometric_mean(values: Sequence[float]) -> float | None:
    """Of numbers above 0; None for none."""
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else None


def jain(values: Sequence[float]) -> float | None:
    """Jain's index of fairness, (sum x)^2 / (n sum x^2): 1 where all are equal, 1/n where one has everything.

    R. Jain, D. Chiu, W. Hawe, A Quantitative Measure of Fairness, DEC TR-301, 1984."""
    squares = math.fsum(value * value for value in values)
    return math.fsum(values) ** 2 / (len(values) * squares) if squares else None


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """Linear between the two nearest ranks, as numpy has it; None for no values."""
    found = np.percentile(values, PERCENTILES).tolist() if values else [None] * len(PERCENTILES)
    return {f"p{percent}": value for percent, value in zip(PERCENTILES, found, strict=True)}


def stream_speeds(records: Iterable[Record]) -> list[float]:
    """Tokens per second of each stream that got any token, over the time in which it had a request under way."""
    tokens: dict[int, int] = {}
    busy: dict[int, float] = {}
    for record in records:
        tokens[record.stream] = tokens.get(record.stream, 0) + record.tokens
        busy[record.stream] = busy.get(record.stream, 0.0) + record.busy
    return [tokens[stream] / busy[stream] for stream in tokens if tokens[stream] and busy[stream] > 0.0]


def accepted_per_position(records: Sequence[Record]) -> list[float]:
    """Share of rounds in which the draft's i-th token was accepted, from the first to the longest draft's last.

    A verdict's tokens come in one event, so the event's accepted tokens are those of a round. The sum is the mean accepted
    length less 1."""
    rounds = sum(record.speculation.rounds for record in records)
    longest = max((length for record in records for length in record.speculation.lengths), default=0)
    runs = [arrival.accepted for record in records for arrival in record.arrivals]
    return [sum(run > position for run in runs) / rounds for position in range(longest)]


def attained(record: Record, classes: Mapping[str, ServiceClass]) -> bool:
    """It finished, and within its class's targets where there are any."""
    promised = classes.get(record.service_class)
    return record.finished and (promised is None or promised.met(record.ttft, record.tpot))


def _streams(records: Sequence[Record]) -> dict[str, float | None]:
    speeds = stream_speeds(records)
    return {
        "geomean_tokens_per_s": geometric_mean(speeds),
        "min_tokens_per_s": min(speeds, default=None),
        "jain": jain(speeds),
    }


def _times(finished: Sequence[Record]) -> dict[str, Any]:
    return {
        "ttft_s": percentiles([record.ttft for record in finished]),
        "tpot_s": percentiles([record.tpot for record in finished if record.tokens > 1]),
        "e2e_s": percentiles([record.e2e for record in finished]),
    }


def _service(records: Sequence[Record], classes: Mapping[str, ServiceClass], duration: float) -> dict[str, Any]:
    """Requests under way when the run was interrupted are nobody's success or failure."""
    decided = [record for record in records if record.finished or record.error is not None]
    good = [record for record in decided if attained(record, classes)]
    slo = {}
    for name in sorted({record.service_class for record in decided}):
        requests = sum(record.service_class == name for record in decided)
        slo[name] = {
            "requests": requests,
            "attained": sum(record.service_class == name for record in good) / requests,
        }
    return {
        "slo": slo,
        "goodput_requests_per_s": _per_second(len(good), duration),
        "goodput_tokens_per_s": _per_second(sum(record.tokens for record in good), duration),
    }


def _speculation(finished: Sequence[Record], daemons: DaemonFigures) -> dict[str, Any]:
    rounds = sum(record.speculation.rounds for record in finished)
    drafted = sum(record.speculation.drafted for record in finished)
    accepted = sum(record.speculation.accepted for record in finished)
    return {
        "rounds": rounds,
        "acceptance_rate": accepted / drafted if drafted else None,
        "mean_accepted_length": 1 + accepted / rounds if rounds else None,
        "accepted_per_position": accepted_per_position(finished),
        "wasted_draft_tokens": {"refused": drafted - accepted, "stale": daemons.stale, "discarded": daemons.discarded},
        "wasted_drafting_s": daemons.wasted_drafting_s,
    }


def _per_second(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0.0 else 0.0
