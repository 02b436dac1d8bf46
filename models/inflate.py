"""Make from a model a costlier one that computes the same function, so that benchmarks can run at the cost ratios of
real pairs with the acceptance of a trained one.

    python -m models.inflate models/tiny-target /tmp/inflated --factor 4
    python -m models.inflate models/tiny-target /tmp/inflated --layers 24 --hidden 768

More layers: each new layer is a copy of an old one whose two output projections (`o_proj`, `down_proj`) are zero. It
adds nothing to the residual stream, and costs what every layer costs.

More width: the residual stream gets channels that are always zero, attention gets heads and the feed-forward layer gets
units whose results are multiplied by zeros. The size of a head stays, so the scale of attention and the rotary
positions stay too; the number of query heads for each key-value head stays, so each query still meets its own keys.

RMSNorm needs care. It divides by sqrt(mean(x^2) + eps) with the mean over *all* channels. With d real channels among D,
mean(x^2) is d/D of what it was. With eps scaled by d/D as well, the whole root is smaller by exactly sqrt(d/D), so the
result is too large by sqrt(D/d); norm weights multiplied by sqrt(d/D) take that back.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path

import click
import torch
from transformers import LlamaConfig, LlamaForCausalLM

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def inflate(
    model: LlamaForCausalLM, layers: int | None = None, hidden: int | None = None, factor: float | None = None
) -> LlamaForCausalLM:
    """A larger copy of `model` with the same logits.

    `layers` and `hidden` are the new sizes, those not given stay. `factor` asks instead for that many times the layers,
    the simplest way to that many times the cost. The result's configuration says `inflated_from`.
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
    larger = _configuration(config, layers or config.num_hidden_layers, hidden or config.hidden_size)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are all replaced: leave the caller's numbers alone
        result = LlamaForCausalLM(larger)
    result = result.to(device=model.device, dtype=model.dtype)
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
            _place(sources[name] * scale, parameter)
        if source == previous:  # the first copy of a layer does its work, the others none
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        previous = source


def _place(small: torch.Tensor, large: torch.Tensor) -> None:
    """Put `small` into the first corner of `large`, zeros into the rest."""
    large.zero_()
    large[tuple(slice(0, size) for size in small.shape)] = small


def _configuration(config: LlamaConfig, layers: int, hidden: int) -> LlamaConfig:
    """The larger shape; heads, key-value heads and feed-forward units grow in proportion to the width."""
    if layers < config.num_hidden_layers:
        raise ValueError(f"cannot make {layers} layers of {config.num_hidden_layers}")
    if hidden < config.hidden_size:
        raise ValueError(f"cannot make width {hidden} of {config.hidden_size}")
    group = config.num_attention_heads // config.num_key_value_heads
    kv_heads = math.ceil(config.num_key_value_heads * hidden / config.hidden_size)
    larger = copy.deepcopy(config)
    larger.num_hidden_layers = layers
    larger.hidden_size = hidden
    larger.head_dim = config.head_dim
    larger.num_key_value_heads = kv_heads
    larger.num_attention_heads = kv_heads * group
    larger.intermediate_size = math.ceil(config.intermediate_size * hidden / config.hidden_size)
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


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--factor", type=click.FloatRange(min=1), help="Times the layers; excludes --layers and --hidden.")
@click.option("--layers", type=click.IntRange(min=1), help="Layers of the result.")
@click.option("--hidden", type=click.IntRange(min=1), help="Width of the result.")
def main(source: Path, out: Path, factor: float | None, layers: int | None, hidden: int | None) -> None:
    """Write to OUT a costlier model that computes what the model in SOURCE computes."""
    if factor is None and layers is None and hidden is None:
        raise click.UsageError("say how much larger: --factor, --layers or --hidden")
    if not (source / "config.json").is_file():
        raise click.ClickException(f"no model in {source}; give a folder with config.json and weights")
    try:
        # float32: the norm weights are rescaled, and rounding them again would change the function.
        result = inflate(LlamaForCausalLM.from_pretrained(source, dtype=torch.float32), layers, hidden, factor)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    result.save_pretrained(out)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    shape = {"layers": result.config.num_hidden_layers, "hidden": result.config.hidden_size}
    (out / "README.md").write_text(
        f"An INFLATED model: it computes what {source.name} computes at a higher cost (models/inflate.py).\n"
        f"Made from {json.dumps(result.config.inflated_from)} to {json.dumps(shape)}. Say so beside every figure.\n"
    )
    click.echo(f"{out}: inflated to {shape['layers']} layers x {shape['hidden']}")


if __name__ == "__main__":
    main()
