"""The layers of a `FusedDecoder` on a CPU, with all that is not a product in compiled kernels.

A layer is then four products and five calls, instead of some twenty operations and as many views: of a small model's step for
one row that was a third. What kernels write goes to memory that stays where it is, already of the size that products want.
Where products are ours as well (halves), small steps are one call: no Python between the embedding and the head, and nobody
else's is waited for meanwhile (the interpreter's lock is let go of).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from specfleet.core.errors import ConfigurationError
from specfleet.engine import numba_kernels as kernels
from specfleet.engine.attention import AttentionContext, attend_groups, attend_walked, walk_of
from specfleet.engine.halves import Halves
from specfleet.engine.kv_pool import KVPool
from specfleet.engine.rows import padded_rows

if TYPE_CHECKING:
    from specfleet.engine.fuse import FusedDecoder, FusedLayer


class Rows:
    """Memory for rows of one width, as a tensor and as an array."""

    def __init__(self, width: int) -> None:
        self._held = torch.zeros(0, width)
        self._views: dict[int, tuple[torch.Tensor, np.ndarray]] = {}

    def of(self, rows: int) -> tuple[torch.Tensor, np.ndarray]:
        """The first `rows` of them, holding anything."""
        found = self._views.get(rows)
        if found is None:
            if rows > len(self._held):
                self._held = torch.zeros(rows, self._held.shape[1])
                self._views.clear()
            view = self._held[:rows]
            found = self._views[rows] = view, view.numpy()
        return found


class CompiledLayers:
    def __init__(self, decoder: FusedDecoder) -> None:
        """Raises ConfigurationError for what the kernels do not do."""
        if decoder.embedding.dtype != torch.float32:
            raise ConfigurationError(
                f"attention backend numba is for float32, not {decoder.embedding.dtype}; choose sdpa"
            )
        width = decoder.embedding.shape[1]
        self._least_rows = decoder.least_rows
        self._embedding = decoder.embedding.numpy()
        cosines, sines = decoder.cosines[:, 0].numpy(), decoder.sines[:, 0].numpy()
        self._x, normed = Rows(width), Rows(width)
        first = decoder.layers[0]
        seen, gated = Rows(first.query_heads * first.head_dim), Rows(first.gate_size)
        self._layers = [CompiledLayer(layer, cosines, sines, normed, seen, gated) for layer in decoder.layers]
        self._whole = Whole.of(decoder.layers, cosines, sines, width)

    def __call__(self, context: AttentionContext) -> torch.Tensor:
        """(tokens or more, width), good until the next call."""
        batch = context.batch
        if self._whole is not None and batch.tokens <= self._whole.rows and not walk_of(context).groups:
            x, out = self._x.of(batch.tokens)
            kernels.embed(batch.token_ids[0].numpy(), self._embedding, out)
            self._whole(out, context)
            return x
        x, out = self._x.of(padded_rows(max(self._least_rows, batch.tokens)))
        kernels.embed(batch.token_ids[0].numpy(), self._embedding, out)
        positions, slots = batch.position_ids[0].numpy(), batch.slots.numpy()
        for layer in self._layers:
            x = layer(x, positions, slots, context)
        return x


def _stacked(halves: Sequence[Halves]) -> np.ndarray:
    """Their weights, one layer's behind the other's, in one place from now on."""
    parts = [torch.from_numpy(one.packed.view(np.int32)) for one in halves]
    found: np.ndarray = torch.stack(parts).numpy().view(np.uint32)  # torch's memory begins with a cache line
    for one, packed in zip(halves, found, strict=True):
        one.packed = packed
    return found


class Whole:
    """All layers in one call."""

    def __init__(
        self,
        layers: Sequence[FusedLayer],
        halves: list[list[Halves]],
        cosines: np.ndarray,
        sines: np.ndarray,
        width: int,
    ) -> None:
        """`halves`: of the four products, each layer's."""
        first = layers[0]
        self.rows = halves[0][0].rows
        """Most tokens of a step."""
        self._weights = tuple(_stacked(own) for own in halves)
        self._biases = tuple(np.stack([one.bias for one in own]) for own in halves)
        norms = [(layer.attention_norm, layer.mlp_norm) for layer in layers]
        self._norms = tuple(np.stack([norm.weight.numpy() for norm in own]) for own in zip(*norms, strict=True))
        self._epsilons = np.array([[norm.epsilon for norm in own] for own in zip(*norms, strict=True)])
        self._turn = cosines, sines
        heads = [layer.head_norms or () for layer in layers]
        none = np.empty((len(layers), 0), np.float32)
        self._head_norms = tuple(np.stack([norm.weight.numpy() for norm in own]) for own in zip(*heads, strict=True))
        self._head_norms = self._head_norms or (none, none)
        self._head_epsilons = np.array([own[0].epsilon if own else 0.0 for own in heads])
        self._query_heads = first.query_heads
        self._windows = np.array([layer.look.window or 0 for layer in layers])
        self._scales = np.array([layer.look.scale for layer in layers])
        seen = first.query_heads * first.head_dim
        widths = (width, width, first.qkv.out_features, seen, 2 * first.gate_size, first.gate_size)
        self._memory = [Rows(each) for each in widths]
        self._cache: tuple[KVPool | None, Any] = None, None
        """The pool that the last step had, and its arrays by layer."""

    @classmethod
    def of(cls, layers: Sequence[FusedLayer], cosines: np.ndarray, sines: np.ndarray, width: int) -> Whole | None:
        """None where a product is not ours."""
        products = zip(*((layer.qkv, layer.out, layer.gate_up, layer.down) for layer in layers), strict=True)
        halves = [[getattr(product, "halves", None) for product in own] for own in products]
        if any(one is None for own in halves for one in own):
            return None
        return cls(layers, halves, cosines, sines, width)

    def __call__(self, x: np.ndarray, context: AttentionContext) -> None:
        """x (tokens, width), in place."""
        batch, walk, pool = context.batch, walk_of(context), context.pool
        assert pool is not None
        if self._cache[0] is not pool:  # the one that a load is probed with is not the engine's
            self._cache = pool, tuple(zip(*pool.arrays, strict=True))
        kernels.decode(
            x,
            self._weights,
            self._biases,
            self._norms,
            self._epsilons,
            *self._turn,
            self._head_norms,
            self._head_epsilons,
            self._query_heads,
            batch.position_ids[0].numpy(),
            batch.slots.numpy(),
            self._cache[1],
            walk.table,
            walk.pages,
            self._windows,
            self._scales,
            tuple(rows.of(len(x))[1] for rows in self._memory),
        )


class CompiledLayer:
    """One decoder layer. Rows beyond the step's tokens are zeros, and stay so."""

    def __init__(
        self, layer: FusedLayer, cosines: np.ndarray, sines: np.ndarray, normed: Rows, seen: Rows, gated: Rows
    ) -> None:
        self._layer = layer
        self._turn = cosines, sines
        self._normed, self._seen, self._gated = normed, seen, gated
        self._norms = [(norm.weight.numpy(), norm.epsilon) for norm in (layer.attention_norm, layer.mlp_norm)]
        none = np.empty(0, np.float32)
        self._head_norms = none, none, 0.0
        if layer.head_norms is not None:
            query, key = layer.head_norms
            self._head_norms = query.weight.numpy(), key.weight.numpy(), query.epsilon

    def __call__(
        self, x: torch.Tensor, positions: np.ndarray, slots: np.ndarray, context: AttentionContext
    ) -> torch.Tensor:
        """x (rows, width), zeros from the last token on."""
        layer, rows = self._layer, x.shape[0]
        normed, normed_array = self._normed.of(rows)
        before, after = self._norms
        kernels.normalize(x.numpy(), *before, normed_array)
        seen = self._attend(layer.qkv.forward(normed), positions, slots, context)
        x = layer.out.add_to(x, seen)
        kernels.normalize(x.numpy(), *after, normed_array)
        gated, gated_array = self._gated.of(rows)
        kernels.gate(layer.gate_up.forward(normed).numpy(), gated_array)
        return layer.down.add_to(x, gated)

    def _attend(
        self, heads: torch.Tensor, positions: np.ndarray, slots: np.ndarray, context: AttentionContext
    ) -> torch.Tensor:
        layer, pool = self._layer, context.pool
        assert pool is not None
        keys, values = pool.arrays[layer.index]
        array, count = heads.numpy(), layer.query_heads
        kernels.rotate_and_store(array, positions, slots, *self._turn, *self._head_norms, count, keys, values)
        seen, seen_array = self._seen.of(len(heads))
        groups = attend_walked(context, array, count, keys, values, layer.look, seen_array)
        if groups:
            query, found = (each.view(len(heads), -1, layer.head_dim)[:, :count] for each in (heads, seen))
            attend_groups(groups, query, pool.keys[layer.index], pool.values[layer.index], layer.look, pool, found)
        seen_array[len(slots) :] = 0.0
        return seen
