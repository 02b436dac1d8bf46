"""Attention spelled out, for kernels to be compared with."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from specfleet.core.step import PAGE_SIZE
from specfleet.engine.attention import Look
from specfleet.engine.batch import Span, StepBatch
from specfleet.engine.kv_pool import KVPool, LayerShape

PLAIN = Look(0.25, None, None)
RAGGED = [(0, 1, 0), (15, 1, 0), (16, 2, 0), (70, 5, 0), (3, 40, 0), (129, 9, 0)]
TREES = [(20, 9, 4), (0, 1, 0), (64, 3, 0), (15, 6, 2), (130, 12, 5)]


@dataclass
class World:
    """Sequences of (places before the step, tokens, leaves) on shuffled pages of a pool full of noise."""

    sequences: list[tuple[int, int, int]]
    kv_heads: int = 2
    share: int = 3
    key_dim: int = 16
    value_dim: int = 16
    dtype: torch.dtype = torch.float32
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        needed = [-(-(start + count) // PAGE_SIZE) for start, count, _ in self.sequences]
        free = random.permutation(sum(needed) + 3).tolist()
        spans = []
        for (start, count, leaves), pages in zip(self.sequences, needed, strict=True):
            held = [free.pop() for _ in range(pages)]
            behind = [int(random.integers(start + 1, start + count - leaves)) for _ in range(leaves)]
            spans.append(Span([1] * count, start, held, 1, behind))
        self.batch = StepBatch(spans, self.device)
        self.pool = KVPool(
            [LayerShape(self.kv_heads, self.key_dim, self.value_dim)], sum(needed) + 3, self.dtype, self.device
        )
        generator = torch.Generator().manual_seed(self.seed)

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(self.device, self.dtype)

        for pool in (*self.pool.keys, *self.pool.values):
            pool.copy_(noise(*pool.shape))
        self.query = noise(self.batch.tokens, self.kv_heads * self.share, self.key_dim)

    def expected(self, look: Look) -> torch.Tensor:
        """Query by query, key by key, in float64."""
        out = []
        keys, values = (pool[0].double().flatten(0, 1) for pool in (self.pool.keys, self.pool.values))
        token = 0
        for span in self.batch.spans:
            slots = [span.pages[place // PAGE_SIZE] * PAGE_SIZE + place % PAGE_SIZE for place in range(span.end)]
            k, v = (
                pool[slots].repeat_interleave(self.share, 1).transpose(0, 1) for pool in (keys, values)
            )  # (heads, places, dim)
            for place, position in zip(range(span.start, span.end), span.positions, strict=True):
                scores = (k @ self.query[token].double()[:, :, None])[:, :, 0] * look.scale
                if look.softcap is not None:
                    scores = torch.tanh(scores / look.softcap) * look.softcap
                seen = [
                    (
                        (at <= position if place == position else at < position)
                        and (look.window is None or at > position - look.window)
                    )
                    or at == place
                    for at in range(span.end)
                ]
                scores = scores.masked_fill(~torch.tensor(seen, device=self.device), -torch.inf)
                out.append((scores.softmax(-1)[:, None] @ v)[:, 0])
                token += 1
        return torch.stack(out)
