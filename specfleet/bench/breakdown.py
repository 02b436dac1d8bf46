"""Where the time of rounds and steps went, from the totals of daemons that trace (specfleet.core.trace)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from specfleet.bench.scrape import DRAFTER, VERIFIER, Interval, Scrape
from specfleet.core.errors import ConfigurationError
from specfleet.core.trace import Phase

ROUND = (
    Phase.DRAFTING,
    Phase.SERIALIZATION,
    Phase.NETWORK,
    Phase.QUEUE,
    Phase.PLAN,
    Phase.BUILD,
    Phase.FORWARD,
    Phase.SAMPLING,
    Phase.ACCEPTANCE,
    Phase.REPLY,
)
STEP = (Phase.PLAN, Phase.BUILD, Phase.FORWARD, Phase.SAMPLING, Phase.ACCEPTANCE, Phase.REPLY)
MESSAGES = 2
"""Of a round, on each side: a draft and a verdict."""

DEFINITIONS = (
    "round: from one verdict to the next as a drafter sees it, mean over rounds that verified a draft; network is what no "
    "daemon accounts for, so drafting ahead, which overlaps it, makes it smaller",
    "step: mean over a verifier's steps of all modes; reply is everything behind acceptance until the next plan",
)


def check_traced(scrapes: Sequence[Scrape]) -> None:
    """Raises ConfigurationError unless all trace, and there are both a verifier and a drafter."""
    for prefix, daemon in ((VERIFIER, "verifier"), (DRAFTER, "drafter")):
        own = [one for one in scrapes if one.prefix == prefix]
        if not own:
            raise ConfigurationError(f"--breakdown needs the metrics of a {daemon}; give its --metrics HOST:PORT, too")
        for one in own:
            if one.total(f"{prefix}phase_seconds_total") is None:
                raise ConfigurationError(
                    f"the {daemon} at {one.address} does not note where time goes; start it with --trace"
                )


def breakdown(intervals: Sequence[Interval]) -> dict[str, Any]:
    """{"rounds": n, "round_s": {phase: seconds}, "steps": n, "step_s": {phase: seconds}}: means over all daemons given; the
    seconds are None where there was no round, or no step."""
    verifiers = [one for one in intervals if one.after.prefix == VERIFIER]
    drafters = [one for one in intervals if one.after.prefix == DRAFTER]
    steps = _sum(verifiers, f"{VERIFIER}step_seconds_count")
    rounds = _sum(drafters, f"{DRAFTER}traced_rounds_total")
    return {
        "rounds": round(rounds),
        "round_s": _round(verifiers, drafters, rounds),
        "steps": round(steps),
        "step_s": {
            phase.value: _ratio(_sum(verifiers, f"{VERIFIER}phase_seconds_total", phase), steps) for phase in STEP
        },
    }


def _round(verifiers: Sequence[Interval], drafters: Sequence[Interval], rounds: float) -> dict[str, float | None]:
    verified = _sum(verifiers, f"{VERIFIER}traced_rounds_total")
    if not rounds or not verified:
        return dict.fromkeys((phase.value for phase in ROUND), None)

    def at_verifier(phase: Phase) -> float:
        return _sum(verifiers, f"{VERIFIER}round_phase_seconds_total", phase) / verified

    def at_drafter(phase: Phase) -> float:
        return _sum(drafters, f"{DRAFTER}round_phase_seconds_total", phase) / rounds

    serialization = MESSAGES * (_each(verifiers, VERIFIER) + _each(drafters, DRAFTER))
    found = {phase: at_verifier(phase) for phase in (Phase.QUEUE, *STEP)}
    found[Phase.DRAFTING] = at_drafter(Phase.DRAFTING)
    found[Phase.SERIALIZATION] = serialization
    found[Phase.NETWORK] = (
        at_drafter(Phase.WAITING) - serialization - math.fsum(found[phase] for phase in (Phase.QUEUE, *STEP))
    )
    return {phase.value: found[phase] for phase in ROUND}


def _each(intervals: Sequence[Interval], prefix: str) -> float:
    """Seconds to code or decode a message there."""
    seconds = _sum(intervals, f"{prefix}phase_seconds_total", Phase.SERIALIZATION)
    return _ratio(seconds, _sum(intervals, f"{prefix}phase_spans_total", Phase.SERIALIZATION)) or 0.0


def _sum(intervals: Sequence[Interval], name: str, phase: Phase | None = None) -> float:
    """What is not known (a daemon that was restarted) counts as nothing."""
    labels = {} if phase is None else {"phase": phase.value}
    total: Callable[[Interval], float | None] = lambda one: one.total(name, **labels)  # noqa: E731
    return math.fsum(total(one) or 0.0 for one in intervals)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
