"""Attention over the paged KV pool, behind one function that Hugging Face models call in place of their own.

Back ends, by name:

    sdpa     any device: gathers each group's pages and makes one padded scaled_dot_product_attention call per group
    numba    CPU, float32: our kernel walks the block tables itself; prompts' many queries go to `sdpa`
    triton   CUDA with Triton: our kernel walks the block tables itself, knows trees, and can be captured in CUDA graphs
    varlen   CUDA, torch >= 2.13: torch's kernel walks them

`CHOICES` says which are tried where, best first. All write this step's keys and values first and then read everything from
the pool, so prefix hits, chunked prefill, verification and decoding are one case.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from specfleet.core.errors import ConfigurationError, ModelLoadError
from specfleet.core.extras import missing
from specfleet.core.step import PAGE_SIZE
from specfleet.engine.batch import Group, StepBatch, Walk
from specfleet.engine.kv_pool import KVPool, LayerShape

NAME = "specfleet"
"""Our name among transformers' attention implementations."""

_HARMLESS = frozenset({"dropout", "is_causal", "position_ids", "use_cache", "output_attentions", "return_dict"})
"""Keyword arguments of the attention call that change nothing here."""


@dataclass(slots=True)
class AttentionCall:
    """What one layer asked for; kept from the load-time probe."""

    layer: int
    shape: LayerShape
    window: int | None
    softcap: float | None


@dataclass(slots=True)
class AttentionContext:
    """Travels with one forward pass, from the engine down to each layer's attention."""

    batch: StepBatch
    pool: KVPool | None
    """None in a pass that only traces the calls; attention then answers zeros."""
    backend: str = "sdpa"
    splits: int | None = None
    """1 makes `triton` and `varlen` independent of the batch's composition; None lets the kernel choose."""
    trace: list[AttentionCall] | None = None
    """Filled by the load-time probe."""


class Look(NamedTuple):
    """How a layer looks at its keys."""

    scale: float
    window: int | None
    softcap: float | None


CHOICES = {"cuda": ("triton", "varlen", "sdpa"), "cpu": ("numba", "sdpa")}
"""Back ends by type of device, best first: `auto` is the first that runs the model."""
_BACKENDS = ("sdpa", "numba", "triton", "varlen")
_WALKED = 16
"""Queries of a sequence in one step up to which `numba` is faster than matrix products: a quarter with nine to sixteen of one
sequence at a context of 200, a tenth with nine of each of eight, and a fifth slower with twenty."""
_SERIAL = 4
"""Threads up to which `numba`, which has one, is the best: with more, torch's operations share the work out."""


def choices(backend: str, device: torch.device) -> tuple[str, ...]:
    """The back ends to try for `backend`, best first. Raises ConfigurationError, saying what to do, if it cannot run here."""
    if backend == "auto":
        found = CHOICES.get(device.type, ("sdpa",))
        return found if torch.get_num_threads() <= _SERIAL else tuple(one for one in found if one != "numba")
    check_backend(backend, device)
    return (backend,)


def check_backend(backend: str, device: torch.device) -> None:
    """Raise ConfigurationError, saying what to do, if `backend` cannot run here."""
    if backend not in _BACKENDS:
        raise ConfigurationError(f"attention backend {backend!r} is unknown; choose {', '.join(_BACKENDS)}")
    if backend == "triton":
        if missing("triton"):
            raise ConfigurationError("attention backend triton needs Triton: pip install triton; or choose sdpa")
        if device.type != "cuda" and not _triton().interprets():
            raise ConfigurationError(
                f"attention backend triton needs a CUDA device, not {device}; choose sdpa (or set TRITON_INTERPRET=1, to test)"
            )
    if backend == "numba":
        if device.type != "cpu":
            raise ConfigurationError(f"attention backend numba is for the CPU, not {device}; choose sdpa")
        if missing("numba"):
            raise ConfigurationError("attention backend numba needs Numba: pip install numba; or choose sdpa")
    if backend == "varlen":
        if device.type != "cuda":
            raise ConfigurationError(f"attention backend varlen needs a CUDA device, not {device}; choose sdpa")
        try:
            import torch.nn.attention.varlen as _  # noqa: F401
        except ImportError:
            raise ConfigurationError(
                f"attention backend varlen needs torch 2.13 or later, this is {torch.__version__}; choose sdpa"
            ) from None


def specfleet_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    specfleet: AttentionContext | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention interface of transformers: query (1, heads, tokens, head_dim), key and value (1, kv_heads, tokens,
    head_dim); returns (1, tokens, heads, head_dim). Raises ModelLoadError for anything it would have to ignore."""
    if specfleet is None:
        raise ModelLoadError(f"{type(module).__name__} does not pass keyword arguments down to its attention")
    refused = [name for name, given in others.items() if given is not None and name not in _HARMLESS]
    if refused or attention_mask is not None:
        what = ", ".join(refused) or "an attention mask of its own"
        raise ModelLoadError(f"{type(module).__name__} asks its attention for {what}, which the engine does not do")
    layer: int = module.layer_idx  # type: ignore[assignment]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if specfleet.trace is not None:
        shape = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        specfleet.trace.append(AttentionCall(layer, shape, sliding_window, softcap))
    if specfleet.pool is None:
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    return paged_attention(specfleet, layer, q, k, v, Look(scale, sliding_window, softcap))[None], None


def paged_attention(
    context: AttentionContext, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, look: Look
) -> torch.Tensor:
    """Write this step's keys and values, then attend: query (tokens, heads, dim), key and value (tokens, kv_heads, dim) in,
    (tokens, heads, value dim) out."""
    pool = context.pool
    assert pool is not None
    pool.write(layer, context.batch.slots, key, value)
    backend = context.backend
    if backend == "varlen" and context.batch.trees:
        backend = "sdpa"  # torch's kernel knows causal masks only; a step with trees is a small one
    return _ATTEND[backend](context, query, pool.keys[layer], pool.values[layer], look)


def _numba() -> Any:
    from specfleet.engine import numba_kernels  # imported where it is used: numba may be missing

    return numba_kernels


def _triton() -> Any:
    from specfleet.engine import triton_attention  # imported where it is used: triton may be missing

    return triton_attention


def _tiled(
    context: AttentionContext, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, look: Look
) -> torch.Tensor:
    kernel, batch, kv_heads = _triton(), context.batch, keys.shape[2]
    tiles = batch.tiles(kernel.tile_queries(batch.most_queries, query.shape[1] // kv_heads))
    splits = context.splits or kernel.splits_for(tiles.count * kv_heads, tiles.most_keys, query.device)
    try:
        out: torch.Tensor = kernel.paged_attention(
            query, keys, values, tiles, scale=look.scale, window=look.window, softcap=look.softcap, splits=splits
        )
    except kernel.KernelError as error:
        raise ConfigurationError(
            f"attention backend triton does not run this model here: {error}; choose sdpa"
        ) from error
    return out


def _varlen(
    context: AttentionContext, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, look: Look
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if look.softcap is not None:
        raise ModelLoadError("attention backend varlen has no logit softcap, which this model needs; choose sdpa")
    batch = context.batch
    out = varlen_attn(
        query,
        keys,
        values,
        batch.cumulative_queries,
        None,
        batch.most_queries,
        batch.most_pages * PAGE_SIZE,
        scale=look.scale,
        # A window of W keys counts the query's own: W - 1 to its left.
        window_size=(-1 if look.window is None else look.window - 1, 0),
        enable_gqa=query.shape[1] != keys.shape[2],
        seqused_k=batch.key_counts,
        block_table=batch.block_tables,
        num_splits=context.splits,
    )
    assert isinstance(out, torch.Tensor)
    return out


def _sdpa(
    context: AttentionContext, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, look: Look
) -> torch.Tensor:
    groups, pool = context.batch.groups, context.pool
    assert pool is not None
    if len(groups) == 1 and groups[0].rows is None:
        return _attend(groups[0], query, keys, values, look, pool)
    out = query.new_empty(query.shape[0], query.shape[1], values.shape[3])
    attend_groups(groups, query, keys, values, look, pool, out)
    return out


def attend_groups(
    groups: Sequence[Group],
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    look: Look,
    pool: KVPool,
    out: torch.Tensor,
) -> None:
    """`sdpa` for the tokens of `groups`: query (tokens, heads, dim) in, (tokens, heads, value dim) into `out`."""
    for group in groups:
        if group.rows is None:
            part = slice(group.first, group.first + len(group.members) * group.queries)
            out[part] = _attend(group, query[part], keys, values, look, pool)
        else:
            padded = _attend(group, query[group.rows], keys, values, look, pool)
            out[group.rows[group.padded_rows]] = padded[group.padded_rows]


def walk_of(context: AttentionContext) -> Walk:
    """What of the step `numba` does, and the groups that it does not."""
    # Where results must not depend on who else is in the step, neither may the kernel.
    return context.batch.walk(_WALKED if context.splits is None else sys.maxsize)


def attend_walked(
    context: AttentionContext,
    query: np.ndarray,
    heads: int,
    keys: np.ndarray,
    values: np.ndarray,
    look: Look,
    out: np.ndarray,
) -> list[Group]:
    """`numba` for the tokens that are not in the groups returned: query (tokens, at least heads * dim), keys and values
    (slots, kv_heads, dim) in, (tokens, heads * dim) into `out`."""
    walk = walk_of(context)
    if walk.table.shape[1]:
        _numba().attend(query, heads, keys, values, walk.table, walk.pages, look.window or 0, look.scale, out)
    return walk.groups


def _check_walked(dtype: torch.dtype, look: Look, key_dim: int, value_dim: int) -> None:
    """Raises ConfigurationError for what `numba` does not do."""
    if dtype != torch.float32 or look.softcap is not None or key_dim != value_dim:
        raise ConfigurationError(
            "attention backend numba is for float32, keys and values of one size and no logit softcap, which this model does "
            "not have; choose sdpa"
        )


def _walked(
    context: AttentionContext, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, look: Look
) -> torch.Tensor:
    _check_walked(query.dtype, look, keys.shape[3], values.shape[3])
    pool = context.pool
    assert pool is not None
    tokens, heads, _ = query.shape
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    slots = [each.flatten(0, 1).numpy() for each in (keys, values)]
    rows, found = query.reshape(tokens, -1).numpy(), out.view(tokens, -1).numpy()
    groups = attend_walked(context, rows, heads, *slots, look, found)
    attend_groups(groups, query, keys, values, look, pool, out)
    return out


def _attend(
    group: Group, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, look: Look, pool: KVPool
) -> torch.Tensor:
    """One padded call: query (members * queries, heads, dim) in, (members * queries, heads, value dim) out.

    Grouped-query attention: the query heads that share a key head become further query rows of that head, so keys and
    values are never repeated.
    """
    members, queries, heads, kv_heads = len(group.members), group.queries, query.shape[1], keys.shape[2]
    share = heads // kv_heads
    if group.span is not None:
        k, v = keys[group.span[0] : group.span[1]], values[group.span[0] : group.span[1]]
    else:
        k, v = pool.gather(keys, values, group.table)
    k = k.view(members, -1, kv_heads, keys.shape[3]).transpose(1, 2)
    v = v.view(members, -1, kv_heads, values.shape[3]).transpose(1, 2)
    q = (
        query.view(members, queries, kv_heads, share, -1)
        .permute(0, 2, 3, 1, 4)
        .reshape(members, kv_heads, share * queries, -1)
    )
    if group.single is None:
        mask = group.mask(look.window, share, query.dtype)
    else:  # one query at position `single` sees the keys up to its own, no mask needed
        first = 0 if look.window is None else max(0, group.single + 1 - look.window)
        k, v, mask = k[:, :, first : group.single + 1], v[:, :, first : group.single + 1], None
    if look.softcap is None:
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=look.scale)
    else:
        scores = torch.tanh(torch.matmul(q, k.transpose(2, 3)) * (look.scale / look.softcap)) * look.softcap
        scores = scores if mask is None else scores + mask
        out = torch.matmul(torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype), v)
    out = out.view(members, kv_heads, share, queries, -1).permute(0, 3, 1, 2, 4)
    return out.reshape(members * queries, heads, -1)


_ATTEND: dict[str, Callable[..., torch.Tensor]] = {"sdpa": _sdpa, "numba": _walked, "triton": _tiled, "varlen": _varlen}


def register() -> None:
    """Make `specfleet` an attention implementation of transformers. No mask function goes with it: transformers then
    builds no mask at all, which is what we want."""
    AttentionInterface.register(NAME, specfleet_attention)
