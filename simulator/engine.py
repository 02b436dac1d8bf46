"""A modelled engine: exact pages, a text that needs no model, and steps that last as long as a profile says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from scheduler.step_time import StepShape
from simulator.text import next_token
from specfleet.core.errors import InternalError
from specfleet.core.step import PAGE_SIZE, StepItem, StepResult

StepSeconds = Callable[[StepShape], float]


class ModelledEngine:
    """Implements specfleet.core.step.Engine in virtual time."""

    page_size = PAGE_SIZE

    def __init__(self, step_seconds: StepSeconds, total_pages: int = 1_000_000) -> None:
        self.total_pages = total_pages
        self.busy_seconds = 0.0
        self.steps = 0
        self._step_seconds = step_seconds
        self._texts: dict[int, list[int]] = {}
        self._used = 0

    @property
    def free_pages(self) -> int:
        return self.total_pages - self._used

    def open(self, sequence: int, tokens: Sequence[int]) -> int:
        self._texts[sequence] = []
        return 0

    def truncate(self, sequence: int, length: int) -> None:
        text = self._texts[sequence]
        self._used -= self._pages(len(text)) - self._pages(length)
        del text[length:]

    def close(self, sequence: int) -> None:
        self._used -= self._pages(len(self._texts.pop(sequence)))

    async def step(self, items: Sequence[StepItem]) -> list[StepResult]:
        seconds = self._step_seconds(
            StepShape.of((len(item.tokens), len(self._texts[item.sequence])) for item in items)
        )
        results = [self._one(item) for item in items]
        if self._used > self.total_pages:
            raise InternalError(f"{self._used} pages are used of {self.total_pages}")
        self.busy_seconds += seconds
        self.steps += 1
        await asyncio.sleep(seconds)
        return results

    def _one(self, item: StepItem) -> StepResult:
        text = self._texts[item.sequence]
        before = self._pages(len(text))
        fed = len(item.tokens) - item.draft
        text.extend(item.tokens[:fed])
        result = self._verify(text, item.tokens[fed:]) if item.sample else StepResult()
        self._used += self._pages(len(text)) - before
        return result

    @staticmethod
    def _verify(text: list[int], draft: Sequence[int]) -> StepResult:
        accepted = []
        own = next_token(text)
        for guess in draft:
            if guess != own:
                break
            text.append(guess)
            accepted.append(guess)
            own = next_token(text)
        return StepResult(len(accepted), (*accepted, own))

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.page_size)
