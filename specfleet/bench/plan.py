"""What a run asks, and when: a closed loop, Poisson arrivals, or a published trace."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from specfleet.bench.arrivals import poisson
from specfleet.bench.load import Plan, Request
from specfleet.bench.traces import BLOCK_TOKENS, Row
from specfleet.core.types import SamplingParams

LANES = 8
"""Streams of a closed loop, unless said."""
WORDS_PER_TOKEN = 0.75
"""Of English text, about: whoever puts load on from outside has no tokenizer. Replies say how many tokens it really was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What every request of a run has in common."""

    prompts: tuple[str, ...]
    classes: tuple[str, ...] = ("",)
    sampling: SamplingParams
    """Request i's seed is this one's + i, where there is one."""
    target_only: bool = False

    def request(self, number: int, prompt: str, due: float | None = None, max_tokens: int | None = None) -> Request:
        seed = self.sampling.seed
        sampling = replace(
            self.sampling,
            seed=None if seed is None else seed + number,
            max_tokens=max_tokens or self.sampling.max_tokens,
        )
        return Request(prompt, sampling, self.classes[number % len(self.classes)], due, self.target_only)


def plan(wanted: Wanted, count: int, rate: float | None = None, lanes: int | None = None) -> Plan:
    """`count` requests: a closed loop of `lanes` streams; or, at a `rate` per second, an open one of Poisson arrivals
    (inf: all at once) with at most `lanes` requests at a time."""
    open_loop = rate is not None and math.isfinite(rate)
    moments: Sequence[float | None] = [None] * count
    if rate is not None and open_loop:
        moments = poisson(rate, count, wanted.sampling.seed or 0)
    prompts = itertools.cycle(wanted.prompts)
    requests = tuple(wanted.request(number, next(prompts), due) for number, due in enumerate(moments))
    closed = rate is None or (not open_loop and lanes is not None)
    return Plan(requests, lanes or (LANES if rate is None else count), closed=closed)


def replay(
    wanted: Wanted, rows: Sequence[Row], speed: float = 1.0, lanes: int | None = None, longest: int | None = None
) -> Plan:
    """The trace's requests when they came, `speed` times as fast: prompts as long as recorded (at most `longest` tokens), and
    outputs as long as recorded (at most the sampling's max_tokens). Blocks that prompts shared, these share, too."""
    words = Words(wanted.prompts)
    requests = tuple(
        wanted.request(
            number,
            words.prompt(number, row, longest),
            row.at / speed,
            min(row.output_tokens, wanted.sampling.max_tokens),
        )
        for number, row in enumerate(rows)
    )
    return Plan(requests, lanes or len(requests), closed=False)


class Words:
    """Text of any length, made of the words of prompts."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self._words = " ".join(prompts).split()

    def prompt(self, number: int, row: Row, longest: int | None = None) -> str:
        """As long as `row` says, by words; blocks first, by their numbers."""
        tokens = min(row.prompt_tokens, longest or row.prompt_tokens)
        wanted = max(1, round(tokens * WORDS_PER_TOKEN))
        block = round(BLOCK_TOKENS * WORDS_PER_TOKEN)
        parts = [*(self._from(one, block) for one in row.blocks), self._from(-1 - number, wanted)]
        return " ".join(itertools.islice(itertools.chain.from_iterable(parts), wanted))

    def _from(self, number: int, count: int) -> Iterator[str]:
        """`count` words that begin with a number, so that no two of them begin alike."""
        start = (number * 7919) % len(self._words)
        yield f"{number}:"
        yield from itertools.islice(itertools.cycle(self._words[start:] + self._words[:start]), count - 1)
