"""The engine: sequences on a paged KV cache, one ragged batch a step. Heavy work runs in one thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from specfleet.core.errors import InvalidRequest, Overloaded
from specfleet.core.records import made
from specfleet.core.step import Alternative, StepItem, StepResult, Stop
from specfleet.core.trace import Phase, Tracer
from specfleet.core.types import SamplingParams
from specfleet.engine.batch import Span
from specfleet.engine.checks import check_item
from specfleet.engine.choose import Choice, Chooser
from specfleet.engine.config import EngineConfig
from specfleet.engine.graphs import Progress
from specfleet.engine.leader import Leader
from specfleet.engine.model import LoadedModel
from specfleet.engine.pages import PageCounters, PageTable
from specfleet.engine.parallel import Ranks
from specfleet.engine.thread import EngineThread
from specfleet.engine.worker import Worker

_WARM_UPS, _WARM_UP_TOKENS = 2, 6
"""Times over, and length of a prompt that stays within a page, so that nothing of it is cached."""


@dataclass(slots=True)
class EngineCounters:
    """Plain counters since the start. Outside the forward pass: 1 - forward_seconds / step_seconds."""

    steps: int = 0
    tokens: int = 0
    """Tokens computed, drafts that were then refused included."""
    step_seconds: float = 0.0
    forward_seconds: float = 0.0
    """Of step_seconds, inside the model's forward pass."""


class TorchEngine:
    """`specfleet.core.step.Engine` on torch. Between steps its methods are quick and may be called from any thread; while a
    step runs they wait for it. A step that was cancelled while it ran has still taken effect."""

    def __init__(
        self,
        config: EngineConfig,
        model: LoadedModel | None = None,
        tracer: Tracer | None = None,
        progress: Progress | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Load `config.model` (or take `model`, already loaded). Raises ModelLoadError or ConfigurationError. `tracer`: told
        what the parts of a step took; on a GPU each is waited for then. `progress`: told of the capture of graphs.
        `ranks`: those that share the model, this one being 0; on the others `leader.follow` runs a `Worker` of `config`."""
        self.config = config
        worker = Worker(config, model, progress, ranks)
        self.model = worker.model
        self.counters = EngineCounters()
        self._tracer = tracer
        self._worker = Leader(worker, ranks) if ranks else worker
        self._pages = PageTable(worker.pages)
        self._chooser = Chooser(self.model.device, config.seed, tracer)
        self._lock = threading.Lock()
        self._thread = EngineThread("specfleet-engine")

    # Room ----------------------------------------------------------------------------------------------------------

    @property
    def page_size(self) -> int:
        return self._pages.page_size

    @property
    def total_pages(self) -> int:
        return self._pages.total

    @property
    def free_pages(self) -> int:
        """Pages that can be had now, those of the prefix cache that nobody uses included."""
        return self._pages.free_pages

    @property
    def cached_pages(self) -> int:
        """Of the free pages, those that hold a prefix someone may ask for again."""
        return self._pages.cached_pages

    @property
    def used_pages(self) -> int:
        return self._pages.used_pages

    @property
    def page_counters(self) -> PageCounters:
        """Prefix-cache queries and hits in tokens, evictions and copies in pages."""
        return self._pages.counters

    # Sequences -----------------------------------------------------------------------------------------------------

    def open(self, sequence: int, tokens: Sequence[int]) -> int:
        """Begin a sequence; how many of `tokens` are already computed (whole cached pages, fewer than all)."""
        with self._lock:
            return self._pages.open(sequence, tokens)

    def length(self, sequence: int) -> int:
        """Tokens of the sequence that are computed."""
        return self._pages.length(sequence)

    def truncate(self, sequence: int, length: int) -> None:
        """Forget what was computed from position `length` on."""
        with self._lock:
            self._pages.truncate(sequence, length)

    def close(self, sequence: int) -> None:
        """Give a sequence's pages back; full pages stay in the prefix cache until someone needs the room."""
        with self._lock:
            self._pages.close(sequence)

    def check_integrity(self) -> None:
        """Recount all pages; raises InternalError at the first difference."""
        with self._lock:
            self._pages.check_integrity()

    def warm_up(self) -> None:
        """Run a few small steps and forget them. A back end's first ones take many times as long as all others: nobody should
        wait for them, nor take them for the machine's pace. Raises what steps raise."""
        greedy, sequence = SamplingParams(temperature=0.0), -1
        self.open(sequence, range(_WARM_UP_TOKENS))
        try:
            for _ in range(_WARM_UPS):
                for tokens, drafted in ((_WARM_UP_TOKENS, 0), (1, 0), (1, 0), (5, 4)):
                    self.step_sync([StepItem(sequence, range(tokens), greedy, draft=drafted)])
                self.truncate(sequence, 0)
        finally:
            self.close(sequence)
            self.counters, self._pages.counters = EngineCounters(), PageCounters()

    def shutdown(self) -> None:
        """Wait for the step that is running and end the engine's thread, and other ranks."""
        self._thread.shutdown()
        self._worker.shutdown()

    # Steps ---------------------------------------------------------------------------------------------------------

    async def step(self, items: Sequence[StepItem]) -> list[StepResult]:
        """Run one ragged batch in the engine's thread; results in the order of `items`. See `step_sync`."""
        return await self._thread.run(self.step_sync, items)

    async def extend(
        self, items: Sequence[StepItem], count: int, stops: Sequence[Stop | None] = ()
    ) -> list[list[StepResult]]:
        """`count` steps in a row in the engine's thread: changing threads costs as much as a small model's step. `stops` are
        asked there, too, for the same reason."""
        return await self._thread.run(self.extend_sync, items, count, stops)

    def extend_sync(
        self, items: Sequence[StepItem], count: int, stops: Sequence[Stop | None] = ()
    ) -> list[list[StepResult]]:
        """See `extend`. After any error, in whichever of the steps, every sequence is as it was."""
        before = [self._pages.length(item.sequence) for item in items]
        rows: list[list[StepResult]] = [[] for _ in items]
        feed, going = list(items), list(range(len(items)))
        try:
            for _ in range(count):
                for at, result in zip(going, self.step_sync(feed), strict=True):
                    rows[at].append(result)
                going = [at for at in going if not (stops and (stop := stops[at]) and stop(rows[at][-1]))]
                if not going:
                    break
                feed = [items[at]._replace(tokens=[rows[at][-1].tokens[-1]]) for at in going]
        except BaseException:
            with self._lock:
                self._roll_back(items, before)
            raise
        return rows

    @torch.inference_mode()
    def step_sync(self, items: Sequence[StepItem]) -> list[StepResult]:
        """Forward, choose, roll back. Raises InvalidRequest or PromptTooLong (an item that cannot be), or Overloaded (not
        enough pages) before anything is computed; InternalError if the model's output is not finite. After any error every
        sequence is as it was."""
        if not items:
            return []
        with self._lock:
            began = time.perf_counter()
            self._check(items)
            before = [self._pages.length(item.sequence) for item in items]
            try:
                logits = self._forward(items)
                results = self._choose(items, before, logits)
            except BaseException:
                self._roll_back(items, before)
                raise
            self._keep(items, before, results)
            self.counters.steps += 1
            self.counters.step_seconds += time.perf_counter() - began
            self._mark(Phase.ACCEPTANCE)
            return results

    @torch.inference_mode()
    def forward(self, items: Sequence[StepItem]) -> torch.Tensor:
        """The lower half of a step: compute all tokens, drafts included, and keep them. Logits of the last draft + 1 tokens
        of each sampling item and then of its alternatives, float32 (rows, vocabulary), in order; good until the next step."""
        with self._lock:
            self._check(items)
            return self._forward(items)

    def _forward(self, items: Sequence[StepItem]) -> torch.Tensor:
        spans, copies = [], []
        for item in items:
            start = self._pages.length(item.sequence)
            tokens, first = item.tokens, start + len(item.tokens) - item.draft
            if item.alternatives:
                tokens = [*tokens, *(one.token for one in item.alternatives)]
            copies += self._pages.append(item.sequence, tokens)
            pages = self._pages.block_table(item.sequence)
            rows = item.draft + 1 + len(item.alternatives) if item.sample else 0
            leaves = [first + one.offset for one in item.alternatives] if item.alternatives else ()
            spans.append(made(Span, (tokens, start, pages, rows, leaves)))
        self._worker.copy(copies)
        logits = self._worker.run(spans, lambda: self._mark(Phase.BUILD))
        self.counters.forward_seconds += self._worker.forward_seconds
        self.counters.tokens += sum(span.size for span in spans)
        self._mark(Phase.FORWARD)
        return logits

    def _mark(self, phase: Phase) -> None:
        if self._tracer is not None:
            if self.model.device.type == "cuda":
                torch.cuda.synchronize(self.model.device)
            self._tracer.mark(phase)

    def _choose(self, items: Sequence[StepItem], before: Sequence[int], logits: torch.Tensor) -> list[StepResult]:
        choices, row = [], 0
        for item, start in zip(items, before, strict=True):
            if item.sample:
                choices.append(made(Choice, (item, row, start + len(item.tokens) - item.draft)))
                row += item.draft + 1 + len(item.alternatives)
        chosen = iter(self._chooser.choose(choices, logits) if choices else ())
        return [next(chosen) if item.sample else StepResult() for item in items]

    def _keep(self, items: Sequence[StepItem], before: Sequence[int], results: Sequence[StepResult]) -> None:
        """Roll refused tokens back. An accepted alternative's keys and values move to where its position is: they are those of
        that position already, and to compute them again would cost a token of the next step."""
        lengths, moves = [], []
        for start, item, result in zip(before, items, results, strict=True):
            length = start + len(item.tokens) - (item.draft - result.accepted)
            if result.alternative:
                right = item.alternatives.index(Alternative(result.accepted, result.tokens[result.accepted]))
                moves.append(self._pages.adopt(item.sequence, start + len(item.tokens) + right, length))
                length += 1
            lengths.append(length)
        self._worker.move(moves)
        self._roll_back(items, lengths)

    def _roll_back(self, items: Sequence[StepItem], lengths: Sequence[int]) -> None:
        for item, length in zip(items, lengths, strict=True):
            if length < self._pages.length(item.sequence):
                self._pages.truncate(item.sequence, length)

    # Checks --------------------------------------------------------------------------------------------------------

    def _check(self, items: Sequence[StepItem]) -> None:
        if len({item.sequence for item in items}) < len(items):
            raise InvalidRequest("a sequence is twice in one step; merge its tokens into one item")
        needed = 0
        for item in items:
            check_item(item, self._pages.length(item.sequence), self.model)
            needed += self._pages.pages_needed(item.sequence, len(item.tokens) + len(item.alternatives))
        if needed > self._pages.free_pages:
            raise Overloaded(
                f"the step needs {needed} KV pages and {self.free_pages} of {self.total_pages} are free; "
                "close or truncate sequences, or raise kv_cache_tokens"
            )
