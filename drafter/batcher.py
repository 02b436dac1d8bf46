"""Many generations, one draft model: whoever wants tokens shares the next step of one engine.

A job asks for `count` tokens behind a text. Jobs come and go between steps; a step is one token for each of them, and a
chunk of prefill for those whose text the engine has not seen yet.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from drafter.pace import Middle
from drafter.speculators import Guess
from specfleet.core.errors import InternalError, Overloaded, SpecfleetError
from specfleet.core.step import DraftEngine, StepItem, StepResult, Stop
from specfleet.core.types import SamplingParams

log = logging.getLogger(__name__)

PREFILL_CHUNK = 256
"""Most tokens of one text in a step, so that a long prompt does not hold up everybody's drafting."""


MAX_BURST = 8
"""Most steps in a row without looking who has come meanwhile."""


@dataclass(slots=True, eq=False)
class Job:
    """One request for tokens."""

    number: int
    """Their order of arrival."""
    line: Line
    text: list[int]
    count: int
    done: asyncio.Future[list[Guess]]
    guesses: list[Guess] = field(default_factory=list)
    stop: Stop | None = None
    stopped: bool = False
    """`stop` said that the guesses there are will do."""
    scored: int = 0
    """Tokens at the text's end that are to be scored; then `count` is 0."""
    matches: int | None = None

    def told(self, result: StepResult) -> bool:
        """Called with every guess, once, while the engine waits: true if no more are wanted."""
        self.stopped = self.stop is not None and self.stop(result)
        return self.stopped


class Line:
    """One generation's place in the draft model: what the engine holds of its text."""

    def __init__(self, batcher: DraftBatcher, sequence: int, sampling: SamplingParams) -> None:
        self.sequence = sequence
        self.sampling = sampling
        self.held: list[int] = []
        """Tokens the engine has computed."""
        self.opened = False
        self._batcher = batcher

    async def draft(self, text: Sequence[int], count: int, stop: Stop | None = None) -> list[Guess]:
        """`count` tokens behind `text`, fewer if `stop` says so; cancelling gives them up. One at a time."""
        return await self._batcher.draft(self, text, count, stop)

    async def score(self, text: Sequence[int], count: int) -> int | None:
        """How many of the last `count` tokens of `text` the model would have chosen; None if the engine has no room."""
        return await self._batcher.score(self, text, count)

    def close(self) -> None:
        self._batcher.drop(self)

    def common(self, text: Sequence[int]) -> int:
        """Length of the common prefix of `text` and what the engine holds, looking from the end: changes are there."""
        length = min(len(self.held), len(text))
        if self.held[:length] == list(text[:length]):
            return length
        return next(at for at in range(length) if self.held[at] != text[at])


class DraftBatcher:
    """Runs the draft engine for all lines. `run` is one task; everything else only talks to it."""

    def __init__(
        self, engine: DraftEngine, max_step_tokens: int = 1024, measure: bool = True, runners_up: bool = False
    ) -> None:
        """`measure`: say of each guess how sure the model was of it; costs some passes over the vocabulary. `runners_up`: and
        what it would have guessed next."""
        self._engine = engine
        self._measure = measure
        self._runners_up = measure and runners_up
        self._max_step_tokens = max_step_tokens
        self._numbers = itertools.count(1)
        self._arrivals = itertools.count(1)
        self._jobs: list[Job] = []
        self._dropped: list[Line] = []
        self._lines: dict[int, Line] = {}
        self._wake = asyncio.Event()
        self._step_seconds = Middle()

    def burst(self, seconds: float) -> int:
        """How many steps fit into so many seconds, within MAX_BURST; 1 while that is not known."""
        step = self._step_seconds.value
        return max(1, min(MAX_BURST, int(seconds / step))) if step else 1

    @property
    def lines(self) -> int:
        """Generations the engine holds something of."""
        return len(self._lines)

    def line(self, sampling: SamplingParams) -> Line:
        """A place for one more generation. Log-probabilities are the target's; nobody asks for those of guesses."""
        return Line(self, next(self._numbers), replace(sampling, logprobs=False, top_logprobs=0))

    async def draft(self, line: Line, text: Sequence[int], count: int, stop: Stop | None = None) -> list[Guess]:
        done: asyncio.Future[list[Guess]] = asyncio.get_running_loop().create_future()
        job = Job(next(self._arrivals), line, list(text), count, done, stop=stop)
        self._jobs.append(job)
        self._wake.set()
        return await job.done

    async def score(self, line: Line, text: Sequence[int], count: int) -> int | None:
        done: asyncio.Future[list[Guess]] = asyncio.get_running_loop().create_future()
        job = Job(next(self._arrivals), line, list(text), 0, done, scored=count)
        self._jobs.append(job)
        self._wake.set()
        await done
        return job.matches

    def drop(self, line: Line) -> None:
        self._dropped.append(line)
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._settle()
            if not self._jobs:
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._step()

    async def _step(self) -> None:
        """One engine step for as many jobs as fit, in the order they came; the rest are first in the next."""
        jobs, items = self._batch()
        if not items:
            self._make_room()
            return
        try:
            rows = await self._run(jobs, items)
        except Overloaded:
            # A page shared with another line had to be copied, which is more than the count above knows.
            self._make_room()
            return
        except SpecfleetError as error:
            self._fail(jobs, error)
            return
        except Exception:
            log.exception("draft step failed", extra={"lines": [job.line.sequence for job in jobs]})
            self._fail(
                jobs, InternalError("the draft engine failed in this text's step; the drafter's log has the reason")
            )
            return
        for job, item, row in zip(jobs, items, rows, strict=True):
            self._take(job, item, row)
        self._jobs = [job for job in self._jobs if not job.done.done()]
        served = set(map(id, jobs))
        self._jobs.sort(key=lambda job: id(job) in served)

    def _batch(self) -> tuple[list[Job], list[StepItem]]:
        tokens, reserved, short = self._max_step_tokens, 0, False
        jobs, items = [], []
        for job in self._jobs:
            if short and not job.line.opened:
                continue  # what the prefix cache has of its text it would take from who came first
            # Before counting free pages: opening takes those that the prefix cache has of this text.
            self._open(job)
            pages = self._engine.free_pages - reserved
            held = len(job.line.held)
            feed = job.text[held : held + min(PREFILL_CHUNK, tokens)]
            rest = len(job.text) - held - len(feed)
            if 0 < rest <= job.scored:
                # What is scored stays in one chunk, with a token before it.
                feed = feed[: rest - job.scored - 1]
            needed = self._pages(held + len(feed)) - self._pages(held)
            if not feed or needed > pages:
                short = short or needed > pages
                continue
            tokens, reserved = tokens - len(feed), reserved + needed
            jobs.append(job)
            items.append(self._item(job, feed))
        return jobs, items

    def _open(self, job: Job) -> None:
        line = job.line
        if not line.opened:
            line.held = job.text[: self._engine.open(line.sequence, job.text)]
            line.opened = True
            self._lines[line.sequence] = line

    def _item(self, job: Job, feed: list[int]) -> StepItem:
        sampling = job.line.sampling
        last = len(job.line.held) + len(feed) == len(job.text)
        if last and 0 < job.scored < len(feed):
            return StepItem(job.line.sequence, feed, sampling, draft=job.scored, score=True)
        return StepItem(
            job.line.sequence,
            feed,
            sampling,
            sample=last,
            want_q=last and not sampling.match_rule,
            want_confidence=last and self._measure,
            want_runner_up=last and self._runners_up and sampling.match_rule,
        )

    async def _run(self, jobs: Sequence[Job], items: Sequence[StepItem]) -> list[list[StepResult]]:
        """One step; or as many in a row as every job needs, while nobody waits and the pages suffice."""
        burst = 1
        if len(jobs) == len(self._jobs) and all(item.sample for item in items) and not any(job.scored for job in jobs):
            burst = min(MAX_BURST, *(job.count - len(job.guesses) for job in jobs))
            needed = sum(self._pages(len(job.text) + burst) - self._pages(len(job.line.held)) for job in jobs)
            burst = burst if needed <= self._engine.free_pages else 1
        clock = asyncio.get_running_loop().time
        began = clock()
        if burst > 1:
            rows = await self._engine.extend(items, burst, [job.told for job in jobs])
            self._step_seconds.observe((clock() - began) / max(map(len, rows)), began)
            return rows
        results = await self._engine.step(items)
        self._step_seconds.observe(clock() - began, began)
        for job, result in zip(jobs, results, strict=True):
            if result.tokens:
                job.told(result)
        return [[result] for result in results]

    def _take(self, job: Job, item: StepItem, row: Sequence[StepResult]) -> None:
        job.line.held.extend(item.tokens)
        if job.scored:
            if item.sample and not job.done.done():
                job.matches = row[0].matches if item.score else None
                job.done.set_result(job.guesses)
            return
        for number, result in enumerate(row):
            if not result.tokens:
                return
            if number:  # fed back meanwhile
                job.line.held.append(job.text[-1])
            job.guesses.append(Guess(result.tokens[-1], result.q, result.confidence))
            job.text.append(result.tokens[-1])
        if (job.stopped or len(job.guesses) == job.count) and not job.done.done():
            job.done.set_result(job.guesses)

    def _fail(self, jobs: Sequence[Job], error: SpecfleetError) -> None:
        """Jobs whose step failed; their lines begin anew."""
        for job in jobs:
            self._forget(job.line)
            if not job.done.done():
                job.done.set_exception(error)

    def _settle(self) -> None:
        """Between steps: let go of lines that ended and of jobs that were given up or have outgrown the engine; roll lines
        back to where texts agree."""
        for line in self._dropped:
            self._jobs = [job for job in self._jobs if job.line is not line]
            self._forget(line)
        self._dropped.clear()
        for job in self._jobs:
            # Two such texts would take each other's pages for ever.
            if self._pages(len(job.text)) > self._engine.total_pages and not job.done.done():
                self._forget(job.line)
                job.done.set_result(job.guesses)
        self._jobs = [job for job in self._jobs if not job.done.done()]
        for job in self._jobs:
            if not job.guesses and job.line.opened:
                self._roll_back(job)

    def _roll_back(self, job: Job) -> None:
        line = job.line
        # At least the last token is computed anew, or the one before those to be scored: its logits are what comes next.
        keep = min(line.common(job.text), len(job.text) - 1 - job.scored)
        if keep < len(line.held):
            self._engine.truncate(line.sequence, keep)
            del line.held[keep:]

    def _make_room(self) -> None:
        """No job fits. Lines without a job give way, the largest first, then the line whose job came last; so the job that
        came first always gets on. Where nobody else holds anything, it cannot be served at all: it ends with what it has."""
        self._jobs.sort(key=attrgetter("number"))
        first = self._jobs[0]
        came = {job.line.sequence: job.number for job in self._jobs}
        others = [line for line in self._lines.values() if line.held and line is not first.line]
        if others:
            self._forget(max(others, key=lambda line: (came.get(line.sequence, math.inf), len(line.held))))
            return
        self._forget(first.line)
        if not first.done.done():
            first.done.set_result(first.guesses)

    def _forget(self, line: Line) -> None:
        if line.opened:
            self._engine.close(line.sequence)
            del self._lines[line.sequence]
        line.opened = False
        line.held = []

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self._engine.page_size)
