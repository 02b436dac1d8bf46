"""The tensors behind the page table: one pool of keys and one of values per layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from specfleet.core.errors import ConfigurationError
from specfleet.core.step import PAGE_SIZE


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Keys and values of one attention layer."""

    kv_heads: int
    key_dim: int
    value_dim: int


class KVPool:
    """Keys and values of `pages` pages for each layer, shape (pages, 16, kv_heads, dim). A *slot* is a token's place:
    page * 16 + offset."""

    def __init__(self, layers: Sequence[LayerShape], pages: int, dtype: torch.dtype, device: torch.device) -> None:
        """Raises ConfigurationError where `device` has not got the memory."""
        self.pages = pages

        def make(heads: int, dim: int) -> torch.Tensor:
            return _zeros((pages, PAGE_SIZE, heads, dim), dtype, device)

        try:
            self.keys = [make(layer.kv_heads, layer.key_dim) for layer in layers]
            self.values = [make(layer.kv_heads, layer.value_dim) for layer in layers]
        except (MemoryError, torch.OutOfMemoryError):
            token = sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in layers) * dtype.itemsize
            tokens = pages * PAGE_SIZE
            raise ConfigurationError(
                f"a KV cache of {tokens} tokens takes {tokens * token / 1e9:.3g} GB for this model, more than {device} has to "
                "spare; give a smaller --kv-cache-tokens"
            ) from None
        self._gathered = (Gathered(), Gathered())
        self._flat = [(k.flatten(0, 1), v.flatten(0, 1)) for k, v in zip(self.keys, self.values, strict=True)]

    @cached_property
    def arrays(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Keys and values of each layer, (slots, kv_heads, dim), on the CPU and without copying."""
        return [(keys.numpy(), values.numpy()) for keys, values in self._flat]

    @property
    def bytes(self) -> int:
        return sum(pool.numel() * pool.element_size() for pool in [*self.keys, *self.values])

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put `keys` and `values`, each (tokens, kv_heads, dim), into `slots`, int64 (tokens,)."""
        key_slots, value_slots = self._flat[layer]
        key_slots.index_copy_(0, slots, keys)
        value_slots.index_copy_(0, slots, values)

    def gather(
        self, keys: torch.Tensor, values: torch.Tensor, pages: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`pages`, int64 (n,), of a layer's keys and values, one behind the other: (n, 16, kv_heads, dim) each, good until the
        next call."""
        of_keys, of_values = self._gathered
        return of_keys.rows(keys, pages), of_values.rows(values, pages)

    def move(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy single tokens, (source, destination) slot each, in every layer."""
        if not pairs:
            return
        source, destination = (torch.tensor(slots, device=self.keys[0].device) for slots in zip(*pairs, strict=True))
        for pools in self._flat:
            for flat in pools:
                flat[destination] = flat[source]

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole pages, (source, destination) each, in every layer."""
        if not pairs:
            return
        source = torch.tensor([pair[0] for pair in pairs], device=self.keys[0].device)
        destination = torch.tensor([pair[1] for pair in pairs], device=self.keys[0].device)
        for pool in [*self.keys, *self.values]:
            pool[destination] = pool[source]


class Gathered:
    """Memory for gathered rows, the same for every layer and step: it stays in the cache, and the system is not asked to map
    and clear pages of it again and again, which from some megabytes on took longer than the step itself."""

    def __init__(self) -> None:
        self._held: torch.Tensor | None = None

    def rows(self, source: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """source[index], good until the next call."""
        size = len(index) * source[0].numel()
        if self._held is None or self._held.numel() < size:
            self._held = source.new_empty(size + size // 4)
        out = self._held[:size].view(len(index), *source.shape[1:])
        return torch.index_select(source, 0, index, out=out)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros and not just any memory: a masked slot that was never written still meets the softmax, and 0 * NaN is NaN.

    On the CPU from numpy, whose zeros the system hands out only when they are first touched, aligned to cache lines: a
    large pool then costs only what is used of it.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + 64, dtype=np.uint8)
    first = -raw.ctypes.data % 64
    return torch.from_numpy(raw[first : first + size]).view(dtype).view(shape)
