"""Make from a model a costlier one that computes the same function, so that benchmarks can run at the cost ratios of
real pairs with the acceptance of a trained one.

`python -m models.inflate` does it to folders.

More layers: each new layer is a copy of an old one whose two output projections (`o_proj`, `down_proj`) are zero. It
adds nothing to the residual stream, and costs what every layer costs.

More width: the residual stream gets channels that are always zero, attention gets heads and the feed-forward layer gets
units whose results are multiplied by zeros. The size of a head stays, so the scale of attention and the rotary
positions stay too; new query heads stand behind the old ones of their key-value head, so each query still meets its own keys.

RMSNorm needs care. It divides by sqrt(mean(x^2) + eps) with the mean over *all* channels. With d real channels among D,
mean(x^2) is d/D of what it was. With eps scaled by d/D as well, the whole root is smaller by exactly sqrt(d/D), so the
result is too large by sqrt(D/d); norm weights multiplied by sqrt(d/D) take that back.
"""

from __future__ import annotations

import copy
import math

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


def inflate(
    model: LlamaForCausalLM,
    layers: int | None = None,
    hidden: int | None = None,
    factor: float | None = None,
    heads: tuple[int, int] | None = None,
    intermediate: int | None = None,
) -> LlamaForCausalLM:
    """A larger copy of `model` with the same logits, on its device and in its dtype.

    `layers` and `hidden` are the new sizes, those not given stay. `factor` asks instead for that many times the layers,
    the simplest way to that many times the cost. `heads` (query, key-value) and `intermediate` grow in proportion to the width
    unless given. The result's configuration says `inflated_from`.
    """
    config = model.config
    if not isinstance(model, LlamaForCausalLM):
        raise ValueError(f"can inflate Llama models, not {type(model).__name__}")
    if config.attention_bias or config.mlp_bias:
        raise ValueError("can inflate models without biases only")
    if factor is not None:
        if layers is not None or hidden is not None:
            raise ValueError("factor excludes layers and hidden")
        layers = round(config.num_hidden_layers * factor)
    larger = _configuration(
        config, layers or config.num_hidden_layers, hidden or config.hidden_size, heads, intermediate
    )
    # The weights drawn here are all replaced: leave the caller's numbers alone.
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []), model.device:
        result = AutoModelForCausalLM.from_config(larger, dtype=model.dtype)
    _copy_weights(model, result)
    return result.train(model.training)


@torch.no_grad()
def _copy_weights(model: LlamaForCausalLM, result: LlamaForCausalLM) -> None:
    """Every weight of `result` is a weight of `model` with zeros around it, or zero altogether."""
    norm_scale = math.sqrt(model.config.hidden_size / result.config.hidden_size)
    _place(model.model.embed_tokens.weight, result.model.embed_tokens.weight)
    _place(model.lm_head.weight, result.lm_head.weight)
    _place(model.model.norm.weight * norm_scale, result.model.norm.weight)
    old, new = model.config.num_hidden_layers, result.config.num_hidden_layers
    previous = -1
    for index, layer in enumerate(result.model.layers):
        source = index * old // new
        sources = dict(model.model.layers[source].named_parameters())
        for name, parameter in layer.named_parameters():
            scale = norm_scale if name.endswith("layernorm.weight") else 1.0
            _place(_by_head(sources[name], name, model.config) * scale, _by_head(parameter, name, result.config))
        if source == previous:  # the first copy of a layer does its work, the others none
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        previous = source


def _by_head(weight: torch.Tensor, name: str, config: LlamaConfig) -> torch.Tensor:
    """A view in which query heads are (key-value heads, heads of each, size); other weights as they are."""
    heads = (config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads, config.head_dim)
    if name.endswith("q_proj.weight"):
        return weight.view(*heads, -1)
    return weight.view(-1, *heads) if name.endswith("o_proj.weight") else weight


def _place(small: torch.Tensor, large: torch.Tensor) -> None:
    """Put `small` into the first corner of `large`, zeros into the rest."""
    large.zero_()
    large[tuple(slice(0, size) for size in small.shape)] = small


def _configuration(
    config: LlamaConfig, layers: int, hidden: int, heads: tuple[int, int] | None, intermediate: int | None
) -> LlamaConfig:
    """The larger shape; heads, key-value heads and feed-forward units grow in proportion to the width, if not given."""
    if layers < config.num_hidden_layers:
        raise ValueError(f"cannot make {layers} layers of {config.num_hidden_layers}")
    if hidden < config.hidden_size:
        raise ValueError(f"cannot make width {hidden} of {config.hidden_size}")
    group = config.num_attention_heads // config.num_key_value_heads
    kv_heads = math.ceil(config.num_key_value_heads * hidden / config.hidden_size)
    query_heads, kv_heads = heads or (kv_heads * group, kv_heads)
    units = intermediate or math.ceil(config.intermediate_size * hidden / config.hidden_size)
    if query_heads % kv_heads or query_heads // kv_heads < group or kv_heads < config.num_key_value_heads:
        raise ValueError(
            f"cannot make {query_heads} query and {kv_heads} key-value heads of {config.num_attention_heads} and "
            f"{config.num_key_value_heads}: at least as many, and {group} or more to each key-value head"
        )
    if units < config.intermediate_size:
        raise ValueError(f"cannot make {units} feed-forward units of {config.intermediate_size}")
    larger = copy.deepcopy(config)
    larger.num_hidden_layers = layers
    larger.hidden_size = hidden
    larger.head_dim = config.head_dim
    larger.num_key_value_heads = kv_heads
    larger.num_attention_heads = query_heads
    larger.intermediate_size = units
    larger.rms_norm_eps = config.rms_norm_eps * config.hidden_size / hidden
    larger.inflated_from = {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "note": "inflated: zero layers or zero channels raise the cost, the function is that of the smaller model",
    }
    return larger


def is_inflated(config: LlamaConfig) -> bool:
    """Whether a configuration was made here; results measured with such a model must say so."""
    return getattr(config, "inflated_from", None) is not None
