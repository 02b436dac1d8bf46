"""The part of an engine that is on a device: model, KV pool, graphs. It is told pages and spans, and decides nothing; so the
workers of a tensor-parallel engine, one on each device, do the same in step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from specfleet.core.errors import ConfigurationError
from specfleet.core.step import PAGE_SIZE
from specfleet.engine.attention import AttentionContext
from specfleet.engine.batch import Span, StepBatch, fixed_passes
from specfleet.engine.buckets import Bucket, buckets
from specfleet.engine.config import EngineConfig
from specfleet.engine.device import launching_on
from specfleet.engine.graphs import CudaCapture, Graphs, Progress, again
from specfleet.engine.kv_pool import KVPool
from specfleet.engine.memory import default_pages
from specfleet.engine.model import LoadedModel, load
from specfleet.engine.parallel import Ranks

_FIXED_TOKENS = 64
"""Tokens of a deterministic pass."""
_GRAPH_SEQUENCES, _GRAPH_TOKENS = 64, 512
"""The largest steps that run as graphs; larger ones have enough to do for launches not to matter."""


class Worker:
    def __init__(
        self,
        config: EngineConfig,
        model: LoadedModel | None = None,
        progress: Progress | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """See `TorchEngine`. `ranks`: those that share the model; each makes a worker of the same configuration."""
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.model = model or load(
            config.model, config.device, config.dtype, config.attention, config.quantize, ranks, config.deterministic
        )
        self.forward_seconds = 0.0
        """What the last `run` spent in the model."""
        self._deterministic = config.deterministic
        shapes = self._graph_shapes(config.graphs)
        if config.kv_cache_tokens is None:
            self.pages = default_pages(self.model.layers, self.model.dtype, self.model.device)
            self.pages = ranks.least(self.pages) if ranks else self.pages
        else:
            self.pages = config.kv_cache_tokens // PAGE_SIZE
        scratch = max((bucket.scratch_pages for bucket in shapes), default=0)
        if config.deterministic:
            scratch = max(scratch, _FIXED_TOKENS // PAGE_SIZE)
        self._scratch = range(self.pages, self.pages + scratch)  # pages that only padding writes to
        self._pool = KVPool(self.model.layers, self.pages + scratch, self.model.dtype, self.model.device)
        self._splits = 1 if config.deterministic else None
        self.graphs = self._capture(shapes, progress) if shapes else None

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy pages, (source, destination) each."""
        self._pool.copy(pairs)

    def move(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy single tokens' keys and values, (source, destination) slot each."""
        self._pool.move(pairs)

    @torch.inference_mode()
    def run(self, spans: Sequence[Span], built: Callable[[], None] = lambda: None) -> torch.Tensor:
        """One step's forward pass: logits float32 (rows, vocabulary), good until the next. `built` is called when the batch is
        on the device and the model is about to run."""
        self.forward_seconds = 0.0
        with launching_on(self.model.device):
            if not self._deterministic:
                return self._run(spans, built)
            passes = fixed_passes(spans, _FIXED_TOKENS, self._scratch)
            return torch.cat(
                [self._run(part, built).clone() for part in passes]
            )  # the next replay writes to the same memory

    def shutdown(self) -> None:
        """Nothing waits for this one."""

    def _run(self, spans: Sequence[Span], built: Callable[[], None]) -> torch.Tensor:
        replay = self.graphs.fill(spans) if self.graphs else None
        batch = StepBatch(spans, self.model.device) if replay is None else None
        built()
        began = time.perf_counter()
        if replay is not None:
            logits = replay()
        else:
            logits = self.model.run(AttentionContext(batch, self._pool, self.model.backend, self._splits))
        self.forward_seconds += time.perf_counter() - began
        return logits

    def _graph_shapes(self, wanted: bool | None) -> list[Bucket]:
        """Of the steps that run as graphs; none where graphs are off. Raises ConfigurationError where they cannot be on."""
        captures, backend = self.model.device.type == "cuda", self.model.backend
        if wanted and captures and backend != "triton":
            raise ConfigurationError(f"graphs need attention triton, not {backend}; choose triton, or no graphs")
        if not (captures and backend == "triton" if wanted is None else wanted):
            return []
        if self._deterministic:
            return [Bucket(_FIXED_TOKENS, _FIXED_TOKENS)]
        return buckets(_GRAPH_SEQUENCES, min(_GRAPH_TOKENS, self.model.context_length))

    @torch.inference_mode()
    def _capture(self, shapes: list[Bucket], progress: Progress | None) -> Graphs:
        model = self.model
        return Graphs(
            model.run,
            shapes,
            self._pool,
            self._scratch,
            model.backend,
            model.context_length,
            CudaCapture(model.device) if model.device.type == "cuda" else again,
            self._splits,
            progress,
        )
