"""A modelled engine: exact pages, a text that needs no model, and steps that last as long as a profile says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

from simulator.clock import sleep
from simulator.pages import Held, PagePool
from simulator.text import ID_BYTES, TOKENS, VOCABULARY, follow
from specfleet.core.records import made
from specfleet.core.step import PAGE_SIZE, Alternative, StepItem, StepResult


@dataclass(frozen=True, slots=True)
class BatchShape:
    """What a modelled step's time depends on, summed over its sequences."""

    tokens: int = 0
    cached: int = 0
    pairs: int = 0
    """Of a sequence, new tokens times total length."""
    sequences: int = 0


StepSeconds = Callable[[BatchShape], float]
Work = Callable[[float], Awaitable[None]]
"""Waits while so many seconds of work are done."""
NOTHING = StepResult()
NO_MORE = NOTHING[2:]
"""Of a result, what is behind its tokens."""


class _Sequence:
    __slots__ = ("held", "state", "text")

    def __init__(self, held: Held, cached: Sequence[int]) -> None:
        self.held = held
        self.text = list(cached)
        self.state = follow(cached)


class ModelledEngine:
    """Implements specfleet.core.step.Engine in virtual time."""

    page_size = PAGE_SIZE

    def __init__(
        self,
        step_seconds: StepSeconds,
        total_pages: int = 1_000_000,
        *,
        prefix_cache: bool = False,
        work: Work = sleep,
    ) -> None:
        """`work`: lets a step's seconds pass."""
        self.total_pages = total_pages
        self.busy_seconds = 0.0
        self.steps = 0
        self.pages = PagePool(total_pages, self.page_size, prefix_cache)
        self._step_seconds = step_seconds
        self._work = work
        self._sequences: dict[int, _Sequence] = {}

    @property
    def free_pages(self) -> int:
        return self.pages.free

    @property
    def open_sequences(self) -> int:
        return len(self._sequences)

    def open(self, sequence: int, tokens: Sequence[int]) -> int:
        held = self.pages.open(tuple(tokens))
        self._sequences[sequence] = _Sequence(held, tokens[: held.length])
        return held.length

    def truncate(self, sequence: int, length: int) -> None:
        own = self._sequences[sequence]
        del own.text[length:]
        own.state = follow(own.text)
        self.pages.resize(own.held, length)

    def close(self, sequence: int) -> None:
        self.pages.close(self._sequences.pop(sequence).held)

    async def step(self, items: Sequence[StepItem]) -> list[StepResult]:
        seconds = self._step_seconds(self._shape(items))
        results = [self._one(item) for item in items]
        self.busy_seconds += seconds
        self.steps += 1
        await self._work(seconds)
        return results

    def _shape(self, items: Sequence[StepItem]) -> BatchShape:
        tokens = cached = pairs = 0
        for item in items:
            new, old = len(item.tokens) + len(item.alternatives), len(self._sequences[item.sequence].text)
            tokens += new
            cached += old
            pairs += new * (old + new)
        return BatchShape(tokens, cached, pairs, len(items))

    def _one(self, item: StepItem) -> StepResult:
        own = self._sequences[item.sequence]
        text, given = own.text, item.tokens
        fed = len(given) - item.draft
        if fed == 1:
            text.append(given[0])
            own.state = crc32(ID_BYTES[given[0]], own.state)
        else:
            text.extend(given[:fed])
            own.state = follow(given[:fed], own.state)
        result = self._verify(own, given[fed:], item.alternatives) if item.sample else NOTHING
        held = own.held
        # Most steps stay within the last page.
        if len(text) > -(-held.length // PAGE_SIZE) * PAGE_SIZE or len(held.shared) * PAGE_SIZE < len(held.prompt):
            self.pages.resize(held, len(text))
        else:
            held.length = len(text)
        return result

    @staticmethod
    def _verify(own: _Sequence, draft: Sequence[int], alternatives: Sequence[Alternative] = ()) -> StepResult:
        text, state = own.text, own.state
        accepted = []
        token = TOKENS[state % VOCABULARY]
        for guess in draft:
            if guess != token:
                break
            accepted.append(token)
            state = crc32(ID_BYTES[token], state)
            token = TOKENS[state % VOCABULARY]
        if alternatives and len(accepted) < len(draft) and Alternative(len(accepted), token) in alternatives:
            text.extend((*accepted, token))
            own.state = crc32(ID_BYTES[token], state)
            return StepResult(len(accepted), (*accepted, token, TOKENS[own.state % VOCABULARY]), alternative=True)
        text.extend(accepted)
        own.state = state
        return made(StepResult, (len(accepted), (*accepted, token), *NO_MORE))
