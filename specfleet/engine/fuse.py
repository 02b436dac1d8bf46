"""The same model computed with fewer and better operations.

What makes a small batch slow in float32 on a CPU (one thread of an EPYC, weights 384 x 2048, microseconds a product):

    rows                      1      4      9     40
    torch.nn.Linear         237    330    415    860     MKL packs the weights anew in every call
    oneDNN, packed once     107    125    160    375

`pack_linears` is for any model: every plain `nn.Linear` gets packed weights. `FusedDecoder` is for the Llama family: it also
leaves transformers' Python behind, since at this size calling forty modules a layer costs as much as the arithmetic; elsewhere
than on a CPU its products are plain (`DenseLinear`), and what counts is fewer kernels: a third of transformers'.
Which one applies is decided by exact class; `model.load` compares logits with the stock model afterwards in any case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import embedding, linear, pad, rms_norm, silu

from specfleet.engine.attention import AttentionContext, Look, paged_attention
from specfleet.engine.device import last_cache_bytes
from specfleet.engine.halves import Halves, halves_of
from specfleet.engine.parallel import RowwiseLinear, summed
from specfleet.engine.quantize import Int4Linear, Int8Linear, stacked
from specfleet.engine.rows import filled_up, padded_rows

_PACKED_ROWS = 8
"""Batch size that oneDNN lays the weights out for; measured best or equal for 1 to 64 rows."""

_STREAMED_ROWS = 4
"""Rows that a step has at least where weights come from memory and not from a cache: oneDNN's products of one or two rows then
wait for them, those of three to six fetch them ahead (2048 x 384 of 100 MB of weights: 276, 304, 229, 212 and 206 µs for 1, 2,
3, 4 and 6 rows; from the cache one row is the fastest)."""

_FAMILIES = {f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Qwen2", "Qwen3")}
_SILU = {"SiLU", "SiLUActivation"}
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings that depend on the position alone, not on how long the text has become."""
_ROPE_TABLE_LIMIT = 65_536
"""Longest context that cosines and sines are tabulated for."""


def can_pack(module: Any) -> bool:
    """True where the packed products exist: on a CPU with oneDNN, in float32, or in bfloat16 if the processor knows it."""
    ours = torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )
    if not ours or module.device.type != "cpu":
        return False
    bf16 = module.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return module.dtype == torch.float32 or bool(bf16)


def can_fuse(module: Any) -> bool:
    """True for the models that `FusedDecoder` knows."""
    config = module.config
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        type(module).__name__ in _FAMILIES
        and type(module).__module__.startswith("transformers.models.")
        and rope.get("rope_type", "default") in _STATIC_ROPE
        and config.max_position_embeddings <= _ROPE_TABLE_LIMIT
        and all(type(layer.mlp.act_fn).__name__ in _SILU for layer in module.model.layers)
    )


class PackedLinear(nn.Module):
    """y = x A^T + b with A laid out once for oneDNN; several linear layers of one input may be stacked into one. Products are
    of few sizes (`rows`), and those of few rows read half as much where they can (`halves`)."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        weight, self.bias = stacked(linears)
        self.halves = self._halves_of(weight, self.bias)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_ROWS)
        self.out_features = weight.shape[0]

    @staticmethod
    def _halves_of(weight: torch.Tensor, bias: torch.Tensor | None) -> Halves | None:
        return halves_of(weight, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.halves is not None and x.numel() <= self.halves.rows * x.shape[-1]:
            return self.halves.product(x.flatten(0, -2)).view(*x.shape[:-1], self.out_features)
        full = filled_up(x)
        y = _product(full, self.packed, self.bias, "none", [], "")
        return y if full is x else y[..., : x.shape[-2], :]

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """residual + forward(x), (rows, outputs), in one operation where nothing is filled up."""
        if self.halves is not None and x.shape[0] <= self.halves.rows:
            return self.halves.product(x, residual)
        if padded_rows(x.shape[0]) == x.shape[0]:
            return _product_sum(x, residual, self.packed, self.bias, "add")
        return self.forward(x).add_(residual)


class DenseLinear(nn.Module):
    """y = x A^T + b as torch does it, on any device, in any dtype; several linear layers of one input may be stacked."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = stacked(linears)
        self.transposed = self.weight.t()
        self.out_features = self.weight.shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """residual + forward(x) in one operation, if there is no bias."""
        return torch.addmm(residual if self.bias is None else residual + self.bias, x, self.transposed)


class UniformLinear(PackedLinear):
    """The same product whatever the number of rows: for results that must not depend on who else is in a step."""

    @staticmethod
    def _halves_of(weight: torch.Tensor, bias: torch.Tensor | None) -> Halves | None:
        return None


Linear = PackedLinear | DenseLinear | Int8Linear | Int4Linear
KINDS: dict[str | None, type[Linear]] = {None: PackedLinear, "int8": Int8Linear, "int4": Int4Linear}
"""By what a configuration says of quantization."""


def pack_linears(module: nn.Module, kind: type[Linear] = PackedLinear) -> None:
    """Replace every plain `nn.Linear` in `module` by a packed one, in place; the old weights are let go of."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, kind(child))
        else:
            pack_linears(child, kind)


class FusedDecoder:
    """A whole Llama-like model as one flat loop over packed tokens: (batch) -> logits of the wanted rows."""

    def __init__(self, module: Any, windows: Sequence[int | None], kind: type[Linear] = PackedLinear) -> None:
        """Takes `module`'s weights over: its layers are emptied on the way. `windows`: each layer's sliding window."""
        decoder = module.model
        self.embedding = decoder.embed_tokens.weight
        self.norm = _norm(decoder.norm)
        self.head = kind(module.lm_head)
        streams = isinstance(self.head, PackedLinear) and self.head.halves is None
        self.least_rows = _least_rows(module) if streams else 1
        """Smaller steps are filled up to so many rows."""
        self.cosines, self.sines = (
            each.to(module.dtype) for each in _rope_table(decoder.rotary_emb, module.config.max_position_embeddings)
        )
        self.layers = []
        for layer, window in zip(list(decoder.layers), windows, strict=True):
            self.layers.append(FusedLayer(layer, window, kind))
            layer.self_attn = layer.mlp = None  # frees the unpacked weights layer by layer
        module.lm_head = None

    def __call__(self, context: AttentionContext) -> torch.Tensor:
        """Logits float32 (rows, vocabulary) of `context.batch.logit_rows`."""
        batch = context.batch
        x = self._compiled(context) if context.backend == "numba" else self._run(context)
        if len(batch.logit_rows) < batch.tokens:
            x = x[batch.logit_rows]
        return self.head(self.norm(x))[: len(batch.logit_rows)].float()

    def _run(self, context: AttentionContext) -> torch.Tensor:
        """What comes out of the last layer, (tokens or more, width), by torch's operations."""
        batch = context.batch
        ids, positions = batch.token_ids[0], batch.position_ids[0]
        if batch.tokens < self.least_rows:
            spare = (0, self.least_rows - batch.tokens)
            ids, positions = pad(ids, spare), pad(positions, spare)
        x = embedding(ids, self.embedding)
        cosines, sines = self.cosines[positions], self.sines[positions]
        for layer in self.layers:
            x = layer(x, cosines, sines, context)
        return x

    @cached_property
    def _compiled(self) -> Callable[[AttentionContext], torch.Tensor]:
        """The same by compiled kernels. Raises ConfigurationError where they cannot do it."""
        from specfleet.engine.fuse_numba import CompiledLayers  # imported where it is used: numba may be missing

        return CompiledLayers(self)


class FusedLayer:
    """One decoder layer: attention and gated MLP, each behind a norm and added to the residual."""

    def __init__(self, layer: Any, window: int | None, kind: type[Linear]) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index = attention.layer_idx
        self.look = Look(attention.scaling, window, None)
        self.head_dim = attention.head_dim
        self.query_heads = attention.q_proj.out_features // self.head_dim
        self.rotated_heads = self.query_heads + attention.k_proj.out_features // self.head_dim
        self.attention_norm, self.mlp_norm = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self.head_norms = (_norm(attention.q_norm), _norm(attention.k_norm)) if hasattr(attention, "q_norm") else None
        self.qkv = kind(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = _output(attention.o_proj, kind)
        self.gate_size = mlp.gate_proj.out_features
        self.gate_up = kind(mlp.gate_proj, mlp.up_proj)
        self.down = _output(mlp.down_proj, kind)

    def __call__(
        self, x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, context: AttentionContext
    ) -> torch.Tensor:
        """x (tokens, width); cosines and sines (tokens, 1, head_dim), the first half of the sines negated."""
        tokens, split = x.shape[0], self.query_heads
        heads = self.qkv.forward(self.attention_norm(x)).view(tokens, -1, self.head_dim)
        rotated, value = heads[:, : self.rotated_heads], heads[:, self.rotated_heads :]
        if self.head_norms is not None:
            query_norm, key_norm = self.head_norms
            rotated = torch.cat([query_norm(rotated[:, :split]), key_norm(rotated[:, split:])], dim=1)
        half = self.head_dim // 2
        turned = torch.cat((rotated[..., half:], rotated[..., :half]), dim=-1)
        rotated = torch.addcmul(rotated * cosines, turned, sines)
        real = context.batch.tokens
        if real < tokens:  # rows that are there for the products' sake look at nothing
            rotated, value = rotated[:real], value[:real]
        seen = paged_attention(context, self.index, rotated[:, :split], rotated[:, split:], value, self.look)
        seen = seen.reshape(real, -1)
        x = self.out.add_to(x, seen if real == tokens else pad(seen, (0, 0, 0, tokens - real)))
        both = self.gate_up.forward(self.mlp_norm(x))
        return self.down.add_to(x, silu(both[:, : self.gate_size]).mul_(both[:, self.gate_size :]))


def _least_rows(module: Any) -> int:
    weights = sum(each.numel() * each.element_size() for each in module.parameters())
    return _STREAMED_ROWS if weights > (last_cache_bytes() or math.inf) else 1


class SummedLinear:
    """A product over the inputs of this rank, added up over all ranks."""

    def __init__(self, share: Linear) -> None:
        self._share = share

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """residual + the ranks' sum."""
        return summed(self._share.forward(x)) + residual


def _output(layer: nn.Linear, kind: type[Linear]) -> Linear | SummedLinear:
    product = kind(layer)
    return SummedLinear(product) if isinstance(layer, RowwiseLinear) else product


def _norm(norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """RMS norm, x / sqrt(mean(x^2) + eps) * weight, in fewer operations than transformers' eight."""
    weight = norm.weight.detach()
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        return _Norm(weight, norm.variance_epsilon)
    # One kernel on CUDA, summing in float32.
    return partial(rms_norm, normalized_shape=weight.shape, weight=weight, eps=norm.variance_epsilon)


class _Norm:
    """In four operations, which on a CPU are faster than torch's one."""

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        self.weight, self.epsilon = weight, epsilon
        size = weight.shape[-1]
        self.scaled_weight = weight * size**0.5
        self.floor = torch.tensor((size * epsilon) ** 0.5)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x / torch.hypot(length, self.floor)).mul_(self.scaled_weight)


def _rope_table(rotary: Any, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of every position, (positions, 1, dim), the first half of the sines negated: rotating is then
    x * cos + swap_halves(x) * sin."""
    device = rotary.inv_freq.device
    cosines, sines = rotary(torch.zeros(1, device=device), torch.arange(positions, device=device)[None])
    signs = torch.ones(sines.shape[-1], device=device)
    signs[: sines.shape[-1] // 2] = -1.0
    return cosines[0][:, None].clone(), (sines[0] * signs)[:, None].clone()


# Bound once, since looking an operator up costs a microsecond each time. Absent where torch is built without oneDNN, and then
# `can_pack` says so before anyone gets here.
_product: Callable[..., torch.Tensor] = getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)
_product_sum: Callable[..., torch.Tensor] = getattr(
    getattr(torch.ops.mkldnn, "_linear_pointwise", None), "binary", None
)
