"""A verifier and drafters around fake engines, in one process: the production code but for engine and transport."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from drafter.batcher import DraftBatcher
from drafter.early_stop import EarlyStop
from drafter.observer import Observer
from drafter.source import Drafter
from drafter.speculators import Speculator
from drafter.speculators.hybrid import Hybrid
from drafter.speculators.model import Model
from drafter.speculators.ngram import Ngram
from scheduler import Scheduler, SchedulerConfig
from specfleet.core.protocol import MAX_DRAFT_TOKENS, Finished, Open, Opened, Verdict
from specfleet.core.types import ModelInfo, SamplingParams
from specfleet.core.vocabulary import Vocabulary
from support.engine import VOCABULARY, FakeEngine, drafter_rule
from support.transport import MemoryConnection
from verifier.loop import BatchLoop
from verifier.verifier import Limits, Verifier

TABLE = Vocabulary(tuple(f"t{i}" for i in range(VOCABULARY)), ())
GREEDY = SamplingParams(temperature=0.0, max_tokens=40)


@dataclass
class Fleet:
    verifier: Verifier
    engine: FakeEngine
    loop: BatchLoop
    scheduler: Scheduler
    connection: MemoryConnection
    drafter: Drafter
    draft_engine: FakeEngine

    async def generate(self, prompt: Sequence[int], sampling: SamplingParams = GREEDY, **fields: object) -> list[int]:
        """Output ids through the drafter."""
        opening = Open(prompt=tuple(prompt), sampling=sampling, **fields)  # type: ignore[arg-type]
        return (await self.collect(opening))[0]

    async def collect(self, opening: Open) -> tuple[list[int], list[Opened | Verdict | Finished]]:
        messages = [message async for message in self.drafter.run(opening)]
        tokens = [token for message in messages if isinstance(message, Verdict) for token in message.tokens]
        return tokens, messages

    async def quiet(self) -> None:
        """Wait until nothing is held any more; fails where something leaks."""
        for _ in range(200):
            if not self.engine.texts and not self.draft_engine.texts and not self.loop.sessions:
                break
            await asyncio.sleep(0.005)
        assert self.engine.texts == {}
        assert self.draft_engine.texts == {}
        assert self.loop.sessions == 0
        assert len(self.scheduler) == 0


@asynccontextmanager
async def fleet(
    policy: str = "fixed:4",
    rightness: int = 7,
    speculator: str = "model",
    pages: int = 1000,
    draft_pages: int = 1000,
    eos: tuple[int, ...] = (),
    delay: float = 0.0,
    max_sessions: int = 100,
    context: int = 4096,
    engines: tuple[Any, Any] | None = None,
    vocabulary: Vocabulary = TABLE,
    ahead: bool = True,
    early: EarlyStop | None = None,
    observer: Observer | None = None,
    trees: bool = False,
    max_draft: int = MAX_DRAFT_TOKENS,
    away: float = 0.0,
    **scheduling: object,
) -> AsyncIterator[Fleet]:
    """A fleet of one drafter whose model is right `rightness` times in ten; or around other `engines` (target, draft).
    `away`: seconds to the verifier, and as many back."""
    fakes = (
        FakeEngine(pages=pages, delay=delay, context=context),
        FakeEngine(drafter_rule(rightness), pages=draft_pages),
    )
    engine, draft_engine = engines or fakes
    scheduler = Scheduler(SchedulerConfig(speculation=policy, **scheduling))  # type: ignore[arg-type]
    loop = BatchLoop(engine, scheduler, time.monotonic)
    target = ModelInfo("fake", len(vocabulary.tokens), vocabulary.digest(), context, eos)
    limits = Limits(kv_tokens=pages * engine.page_size, max_sessions=max_sessions, idle_seconds=5)
    verifier = Verifier(loop, target, vocabulary, {}, limits, "memory")
    batcher = DraftBatcher(draft_engine, runners_up=trees or early is not None)
    model = Model(batcher, 4096)
    guessers: dict[str, Speculator] = {"model": model, "ngram": Ngram(), "hybrid": Hybrid(model)}
    guesser = guessers[speculator]
    connection = MemoryConnection(verifier, delay=away)
    drafter = Drafter(
        connection,
        guesser,
        vocabulary,
        time.monotonic,
        observer,
        ahead=ahead,
        early=early,
        trees=trees,
        max_draft=max_draft,
    )
    tasks = [asyncio.create_task(loop.run()), asyncio.create_task(batcher.run())]
    try:
        yield Fleet(verifier, engine, loop, scheduler, connection, drafter, draft_engine)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if not isinstance(result, asyncio.CancelledError):
                raise AssertionError("a loop ended") from result
