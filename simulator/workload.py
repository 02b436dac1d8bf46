"""Who asks for what, and when: requests by count of tokens, their arrivals, and prompts that begin alike or not."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from simulator.config import Bursts, Tier, Workload
from simulator.text import TOKENS, VOCABULARY
from specfleet.bench.traces import BLOCK_TOKENS, Row

FILLER = tuple(TOKENS[(7 * place * place + 3 * place) % VOCABULARY] for place in range(1 << 17))
"""What prompts hold behind the tokens that tell them apart."""
HEAD = 3
"""Tokens that a number takes."""


@dataclass(frozen=True, slots=True)
class Request:
    """One generation, before anybody has it."""

    number: int
    prompt_tokens: int
    output_tokens: int
    service_class: str = ""
    group: int | None = None
    """Which of the shared prefixes it begins with."""
    blocks: tuple[int, ...] = ()
    """Or what a trace says of its prompt's blocks."""
    at: float = 0.0
    """When it is issued, where arrivals do not depend on others."""


class Requests:
    """Draws what requests are like."""

    def __init__(self, workload: Workload, rng: random.Random) -> None:
        self._workload = workload
        self._rng = rng
        self._numbers = count()
        self._classes = list(workload.classes)
        self._weights = list(workload.classes.values())

    def next(self, at: float = 0.0, row: Row | None = None, tier: Tier | None = None) -> Request:
        """The next one, of a drafter of this tier; with `row`, of the lengths that a trace says."""
        own, rng, prefix = self._workload, self._rng, self._workload.prefix
        group = None
        if row is None:
            prompt = ((tier and tier.prompt_tokens) or own.prompt_tokens).whole(rng)
            output = ((tier and tier.output_tokens) or own.output_tokens).whole(rng)
        else:
            trace = own.trace
            assert trace is not None
            prompt = min(row.prompt_tokens, trace.max_prompt_tokens or row.prompt_tokens)
            output = min(row.output_tokens, trace.max_output_tokens or row.output_tokens)
        if prefix is not None and rng.random() < prefix.share:
            group = rng.randrange(prefix.groups)
        name = rng.choices(self._classes, self._weights)[0] if self._classes else ""
        return Request(next(self._numbers), prompt, output, name, group, row.blocks if row is not None else (), at)

    def prompt(self, request: Request) -> tuple[int, ...]:
        """Its tokens."""
        prefix = self._workload.prefix
        if request.blocks:
            tokens = tuple(token for block in request.blocks for token in _filled(block, BLOCK_TOKENS))
            return (tokens + _filled(-1 - request.number, max(0, request.prompt_tokens - len(tokens))))[
                : request.prompt_tokens
            ]
        if prefix is None or request.group is None:
            return _filled(request.number, request.prompt_tokens)
        shared = _filled(-1 - request.group, prefix.tokens)[: request.prompt_tokens]
        return shared + _filled(request.number, request.prompt_tokens - len(shared))


def _filled(number: int, length: int) -> tuple[int, ...]:
    """`length` tokens that begin with a number (negative ones are other numbers)."""
    code = 2 * number if number >= 0 else -2 * number - 1
    head = (code % VOCABULARY, code // VOCABULARY % VOCABULARY, code // VOCABULARY**2 % VOCABULARY)
    left = length - HEAD
    filler = FILLER[:left] if left <= len(FILLER) else (FILLER * (left // len(FILLER) + 1))[:left]
    return head + filler if left >= 0 else head[:length]


def arrivals(workload: Workload, rng: random.Random, duration: float, trace: Sequence[Row] = ()) -> Iterator[float]:
    """Moments at which requests come, ascending, up to `duration`: for everything but a closed loop."""
    if workload.trace is not None:
        speed = workload.trace.speed
        return (row.at / speed for row in trace if row.at / speed < duration)
    if workload.poisson is not None:
        return _poisson(workload.poisson.rate, rng, duration)
    assert workload.bursts is not None
    return _bursts(workload.bursts, rng, duration)


def _poisson(rate: float, rng: random.Random, duration: float) -> Iterator[float]:
    at = rng.expovariate(rate)
    while at < duration:
        yield at
        at += rng.expovariate(rate)


def _bursts(bursts: Bursts, rng: random.Random, duration: float) -> Iterator[float]:
    """By thinning: moments at the highest rate, kept with the share of it that the moment has."""
    highest = max(bursts.rate, bursts.burst_rate)
    for at in _poisson(highest, rng, duration):
        rate = bursts.burst_rate if at % bursts.every < bursts.length else bursts.rate
        if rng.random() < rate / highest:
            yield at
