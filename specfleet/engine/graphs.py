"""Steps replayed from CUDA graphs: one for each bucket, captured at start, fed through buffers that stay where they are.

A graph is a recorded sequence of kernels with their addresses: replaying it costs no Python and hardly any launch time, and
needs every input at the same place each time. So a step is padded to its bucket's shape, its indices are copied into the
persistent buffers, the graph is replayed, and the logits of the rows wanted are a view of its output.

Everything but the capture itself is the same on the CPU, where a bucket's forward pass is simply run anew: `capture=again`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from specfleet.core.step import PAGE_SIZE
from specfleet.engine.attention import AttentionContext
from specfleet.engine.batch import Group, Span, StepBatch, Walk
from specfleet.engine.buckets import Bucket, bucket_for, pad
from specfleet.engine.kv_pool import KVPool
from specfleet.engine.tiles import Tiles, most_tiles

Progress = Callable[[int, int], None]
"""Told how many of how many graphs are captured."""
Run = Callable[[], torch.Tensor]


class Capture(Protocol):
    def __call__(self, run: Run) -> Run:
        """Something that computes again what `run` computes, into the same memory or not."""
        ...


def again(run: Run) -> Run:
    """No graph: every replay is a new run."""
    return run


class CudaCapture:
    """Graphs that share one memory pool: only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        with torch.cuda.device(self._device):
            # Kernels are compiled, libraries choose algorithms: all of that has to be over.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    run()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads of the process may use the device meanwhile: only what this one does is recorded, and checked.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                out = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay


class Buffers:
    """The device's side of a batch's indices, filled by one copy from pinned memory. All buckets share it."""

    def __init__(self, tokens: int, pages: int, device: torch.device) -> None:
        """Room for `tokens`, and for block tables of `pages` in all."""
        size = 5 * tokens + pages
        self._host = torch.zeros(size, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._device = torch.zeros(size, dtype=torch.int64, device=device)
        self.room = tokens
        self.ids, self.positions, self.slots, self.places, self.rows = self._device[: 5 * tokens].view(5, tokens)
        self.pages = self._device[5 * tokens :]
        self._fields = self._host[: 5 * tokens].view(5, tokens).numpy()
        self._host_pages = self._host[5 * tokens :].numpy()
        self._copied = torch.cuda.Event() if device.type == "cuda" else None

    def wait(self) -> None:
        """Until pinned memory may be written to again: a step that only computes ends before its copies need have begun."""
        if self._copied is not None:
            self._copied.synchronize()

    def copied(self) -> None:
        """What was to be copied for this step is under way."""
        if self._copied is not None:
            self._copied.record()

    def fill(self, batch: StepBatch) -> None:
        """From a batch on the CPU."""
        parts = (batch.token_ids[0], batch.position_ids[0], batch.slots, batch.places, batch.logit_rows)
        for field, part in zip(self._fields, parts, strict=True):
            field[: len(part)] = part.numpy()
        pages = batch.pages.numpy()
        self._host_pages[: len(pages)] = pages
        used = 5 * self.room + len(pages)
        self._device[:used].copy_(self._host[:used], non_blocking=True)


class StaticBatch:
    """A bucket's batch as the model sees it, always at the same addresses: `StepBatch` of whatever was filled in last.

    All tokens' logits are computed; who wants which is decided behind the graph."""

    trees = False  # the kernel needs not know

    def __init__(self, bucket: Bucket, buffers: Buffers, context_length: int) -> None:
        n = self.tokens = bucket.tokens
        self.bucket, self.device = bucket, buffers.ids.device
        self.token_ids, self.position_ids = buffers.ids[None, :n], buffers.positions[None, :n]
        self.slots, self.logit_rows = buffers.slots[:n], torch.arange(n, device=self.device)
        self.most_queries = bucket.queries
        self._buffers, self._most_keys = buffers, context_length
        self._tiles: dict[int, tuple[np.ndarray, torch.Tensor, Tiles]] = {}
        self.step: StepBatch | None = None
        """Filled in last, on the CPU."""

    @property
    def groups(self) -> list[Group]:
        """Of the step filled in: for back ends that cannot be captured."""
        assert self.step is not None
        return self.step.groups

    def walk(self, most: int) -> Walk:
        """The same."""
        assert self.step is not None
        return self.step.walk(most)

    def tiles(self, queries: int) -> Tiles:
        """Room for the most tiles that a step can have; those that are none hold no queries."""
        if queries not in self._tiles:
            size = most_tiles(self.bucket.sequences + 1, self.tokens, queries)  # one sequence of padding
            host = torch.zeros((size, 3), dtype=torch.int64, pin_memory=self.device.type == "cuda")
            table = torch.zeros((size, 3), dtype=torch.int64, device=self.device)
            n, own = self.tokens, self._buffers
            tiles = Tiles(table, own.positions[:n], own.places[:n], own.pages, queries, self._most_keys)
            self._tiles[queries] = host.numpy(), host, tiles
            self._fill_tiles(queries)
        return self._tiles[queries][2]

    def fill(self, step: StepBatch) -> None:
        """`step`: on the CPU, of exactly the bucket's tokens."""
        self.step = step
        self._buffers.wait()
        self._buffers.fill(step)
        for queries in self._tiles:
            self._fill_tiles(queries)
        self._buffers.copied()

    def _fill_tiles(self, queries: int) -> None:
        assert self.step is not None
        numbers, host, tiles = self._tiles[queries]
        table = self.step.tiles(queries).table.numpy()
        numbers[: len(table)] = table
        numbers[len(table) :] = 0
        tiles.table.copy_(host, non_blocking=True)


class Graphs:
    """The captured forward passes of one engine."""

    def __init__(
        self,
        run: Callable[[AttentionContext], torch.Tensor],
        buckets: Sequence[Bucket],
        pool: KVPool,
        scratch: Sequence[int],
        backend: str,
        context_length: int,
        capture: Capture,
        splits: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Captures every bucket, the largest first, so that the others fit into its memory. `buckets`: smallest first.
        `scratch`: pages of `pool` that only padding writes to."""
        self.buckets, self._scratch = list(buckets), scratch
        device = pool.keys[0].device
        largest, most = max(bucket.tokens for bucket in buckets), max(bucket.sequences for bucket in buckets)
        pages = most * -(-context_length // PAGE_SIZE) + len(scratch)
        self._buffers = Buffers(largest, pages, device)
        self._batches: dict[Bucket, StaticBatch] = {}
        self._replays: dict[Bucket, Run] = {}
        for number, bucket in enumerate(reversed(self.buckets), 1):
            batch = self._batches[bucket] = StaticBatch(bucket, self._buffers, context_length)
            batch.fill(self._padded([], bucket))
            context = AttentionContext(batch, pool, backend, splits)
            self._replays[bucket] = capture(lambda context=context: run(context))
            if progress is not None:
                progress(number, len(self.buckets))

    def fill(self, spans: Sequence[Span]) -> Run | None:
        """Put the step into the buffers of its bucket. Returns what computes its logits, float32 (rows, vocabulary), good
        until the next step; None if no bucket holds it, with nothing changed."""
        bucket = bucket_for(self.buckets, len(spans), sum(span.size for span in spans))
        if bucket is None:
            return None
        batch, replay = self._batches[bucket], self._replays[bucket]
        step = self._padded(spans, bucket)
        batch.fill(step)
        rows = step.logit_rows.numpy()
        if np.array_equal(rows, np.arange(len(rows))):
            return lambda: replay()[: len(rows)]
        return lambda: replay()[self._buffers.rows[: len(rows)]]

    def _padded(self, spans: Sequence[Span], bucket: Bucket) -> StepBatch:
        return StepBatch(pad(spans, bucket, self._scratch), torch.device("cpu"))
