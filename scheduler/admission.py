"""Admission: refuse, with a time to come back, what cannot be served within its class rather than ruin everybody's.

What the sessions with targets need is compared with what a step gives. Somebody with the tightest pace needs a step every
`tpot` seconds (times the tokens that a step brings it), each of which costs the fixed part of a step; everybody's own tokens
cost theirs on top:

    load = fixed / min_i(pace_i) + sum_i cost_i / pace_i,   pace_i = tpot_i * tokens per verdict

Sessions without targets take what is left and never count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scheduler.identities import Identity
from scheduler.step_time import StepTimeModel
from scheduler.types import SessionRecord
from specfleet.core.types import ServiceClass

FULL = 0.95
"""Load at which nobody else with targets is let in: steps vary, and a queue at full load has no end."""
RETRY_SECONDS = 1.0
"""The least that somebody who is refused should wait."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a session is not let in, and when to ask again."""

    reason: str
    retry_after: float
    quota: bool = False
    """The caller's own limit, not everybody's."""


@dataclass(frozen=True, slots=True)
class Request:
    """Somebody who asks to be let in, or has been and waits for the step under way to end."""

    identity: str
    service: ServiceClass
    prompt: int
    """Tokens to prefill."""


def over_quota(identity: Identity, waiting: Sequence[Request], now: float) -> Refusal | None:
    """What the caller's own share forbids."""
    share = identity.share
    sessions = identity.sessions + sum(one.identity == identity.name for one in waiting)
    if share.sessions is not None and sessions >= share.sessions:
        text = f"{sessions} sessions of {identity.name!r} are open, at most {share.sessions}; end one first"
        return Refusal(text, RETRY_SECONDS, quota=True)
    wait = identity.quota_wait(now)
    if wait > 0.0:
        text = f"the {share.tokens_per_minute:g} tokens per minute of {identity.name!r} are used up"
        return Refusal(f"{text}; come back in {max(wait, RETRY_SECONDS):.0f} s", max(wait, RETRY_SECONDS), quota=True)
    return None


def infeasible(
    request: Request, waiting: Sequence[Request], records: Iterable[SessionRecord], step_time: StepTimeModel
) -> Refusal | None:
    """Whether the newcomer's class, or somebody else's, could not be kept any more."""
    service = request.service
    if service.ttft_seconds is None and service.tpot_seconds is None:
        return None
    margin = 1.0 + step_time.error
    fixed, per_token, per_cached, per_pair = (one * margin for one in step_time.coefficients)

    def cost(tokens: float, length: int) -> float:
        return tokens * per_token + length * per_cached + tokens * length * per_pair

    tightest, load, queued = math.inf, 0.0, 0
    for one in (request, *waiting):
        queued += one.prompt
        if one.service.tpot_seconds is not None:
            # Newcomers are taken to go on as everybody begins: a token a verdict.
            tightest = min(tightest, one.service.tpot_seconds)
            load += cost(1.0, one.prompt) / one.service.tpot_seconds
    for record in records:
        if record.prefilling:
            queued += record.behind
        if record.service.tpot_seconds is not None:
            pace = record.service.tpot_seconds * record.tokens_per_verdict.value
            tightest = min(tightest, pace)
            load += cost(record.verified_per_verdict.value, record.known) / pace
    load += fixed / tightest
    if load > FULL:
        text = (
            f"class {service.name!r} cannot be kept: the sessions open now and this one need {load:.0%} of the verifier"
        )
        return Refusal(text, RETRY_SECONDS * max(1.0, load))
    return _late(service, cost(queued, request.prompt) / (1.0 - load))


def _late(service: ServiceClass, prefill: float) -> Refusal | None:
    limit = service.ttft_seconds
    if limit is None or prefill <= limit:
        return None
    text = f"class {service.name!r} promises the first token in {limit:g} s, the queue for prefill is {prefill:.1f} s"
    return Refusal(f"{text} long", max(RETRY_SECONDS, prefill - limit))
