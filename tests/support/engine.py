"""A fake engine with exact page counts and a text that depends on everything before: no torch, instant, reproducible."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Callable, Sequence

from specfleet.core.errors import InternalError, PromptTooLong
from specfleet.core.step import Alternative, Confidence, DraftDistribution, StepItem, StepResult, Stop

VOCABULARY = 50
Rule = Callable[[Sequence[int]], int]


def target_rule(text: Sequence[int]) -> int:
    """The next token after `text`, depending on its length and last tokens."""
    return zlib.crc32(bytes(f"{len(text)} {list(text[-3:])}", "ascii")) % VOCABULARY


def drafter_rule(rightness: int) -> Rule:
    """A drafter that is right about `rightness` times in ten."""

    def rule(text: Sequence[int]) -> int:
        token = target_rule(text)
        lucky = zlib.crc32(bytes(f"luck {len(text)} {text[-1]}", "ascii")) % 10 < rightness
        return token if lucky else (token + 1) % VOCABULARY

    return rule


def reference(prompt: Sequence[int], count: int, ends: Sequence[int] = ()) -> list[int]:
    """What the target alone would write: `count` tokens behind `prompt`, ending early at one of `ends`."""
    text = list(prompt)
    while len(text) < len(prompt) + count:
        text.append(target_rule(text))
        if text[-1] in ends:
            break
    return text[len(prompt) :]


def _confidence(text: Sequence[int]) -> Confidence:
    """Any two-way distribution will do, so long as it is the same every time."""
    share = 0.02 + 0.96 * (zlib.crc32(bytes(f"sure {len(text)} {text[-1]}", "ascii")) % 100) / 100
    rest = 1.0 - share
    entropy = -share * math.log(share) - rest * math.log(rest)
    return Confidence(share, entropy, abs(share - rest), math.sqrt(share * rest) * abs(math.log(share / rest)))


def _runner_up(text: Sequence[int], chosen: int) -> int:
    """Where `drafter_rule` is wrong, the target's own token two times in three."""
    lucky = zlib.crc32(bytes(f"second {len(text)} {text[-1]}", "ascii")) % 3
    return (chosen - 1 if lucky else chosen + 1) % VOCABULARY


class FakeEngine:
    """Implements specfleet.core.step.Engine over a rule. Refuses what a real one could not do."""

    def __init__(
        self,
        rule: Rule = target_rule,
        pages: int = 1000,
        page_size: int = 16,
        delay: float = 0.0,
        context: int = 1_000_000,
    ) -> None:
        self.rule = rule
        self.context = context
        self.page_size = page_size
        self.total_pages = pages
        self.delay = delay
        self.texts: dict[int, list[int]] = {}
        self.steps: list[list[StepItem]] = []
        self.fail_next: Exception | None = None

    @property
    def free_pages(self) -> int:
        return self.total_pages - sum(self._pages(len(text)) for text in self.texts.values())

    def open(self, sequence: int, tokens: Sequence[int]) -> int:
        assert tokens and sequence not in self.texts
        self.texts[sequence] = []
        return 0

    def truncate(self, sequence: int, length: int) -> None:
        assert 0 <= length <= len(self.texts[sequence])
        del self.texts[sequence][length:]

    def close(self, sequence: int) -> None:
        del self.texts[sequence]

    async def step(self, items: Sequence[StepItem]) -> list[StepResult]:
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        assert len({item.sequence for item in items}) == len(items), "a sequence twice in a step"
        needed = sum(
            self._pages(len(self.texts[item.sequence]) + len(item.tokens) + len(item.alternatives))
            - self._pages(len(self.texts[item.sequence]))
            for item in items
        )
        if needed > self.free_pages:
            raise InternalError(f"{needed} pages needed, {self.free_pages} free")
        longest = max(len(self.texts[item.sequence]) + len(item.tokens) for item in items)
        if longest > self.context:
            raise PromptTooLong(f"{longest} tokens do not fit the context of {self.context}")
        self.steps.append(list(items))
        await asyncio.sleep(self.delay)
        return [self._one(item) for item in items]

    async def extend(
        self, items: Sequence[StepItem], count: int, stops: Sequence[Stop | None] = ()
    ) -> list[list[StepResult]]:
        rows: list[list[StepResult]] = [[] for _ in items]
        feed, going = list(items), list(range(len(items)))
        for _ in range(count):
            for at, result in zip(going, await self.step(feed), strict=True):
                rows[at].append(result)
            going = [at for at in going if not (stops and (stop := stops[at]) and stop(rows[at][-1]))]
            if not going:
                break
            feed = [items[at]._replace(tokens=[rows[at][-1].tokens[-1]]) for at in going]
        return rows

    def _one(self, item: StepItem) -> StepResult:
        text = self.texts[item.sequence]
        fed = item.tokens[: len(item.tokens) - item.draft]
        assert fed, "the last known token is fed in every step"
        text.extend(fed)
        if not item.sample:
            return StepResult()
        if item.score:
            matches = 0
            for token in item.tokens[len(fed) :]:
                matches += token == self.rule(text)
                text.append(token)
            return StepResult(item.draft, (self.rule(text),), matches=matches)
        accepted: list[int] = []
        for guess in item.tokens[len(fed) :]:
            if guess != self.rule(text):
                break
            text.append(guess)
            accepted.append(guess)
        own = self.rule(text)
        drafted = len(item.tokens) - len(fed)
        assert all(
            one.offset < drafted and item.tokens[len(fed) + one.offset] != one.token for one in item.alternatives
        )
        if len(accepted) < drafted and Alternative(len(accepted), own) in item.alternatives:
            text.append(own)
            return StepResult(len(accepted), (*accepted, own, self.rule(text)), alternative=True)
        q = DraftDistribution((own,), (1.0,)) if item.want_q else None
        sure = _confidence(text) if item.want_confidence else None
        if sure is not None and item.want_runner_up:
            sure = sure._replace(runner_up=_runner_up(text, own), runner_up_share=0.6)
        return StepResult(len(accepted), (*accepted, own), q=q, confidence=sure)

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.page_size)
