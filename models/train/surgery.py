"""Making a trained Llama larger without starting over: insert layers that at first add nothing, and go on training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def fresh(hidden: int, layers: int, heads: int, kv_heads: int, feed_forward: int, like: LlamaConfig) -> Any:
    """An untrained Llama with the vocabulary and special ids of `like`."""
    config = copy.deepcopy(like)
    config.hidden_size, config.num_hidden_layers, config.intermediate_size = hidden, layers, feed_forward
    config.num_attention_heads, config.num_key_value_heads = heads, kv_heads
    config.head_dim = hidden // heads
    return LlamaForCausalLM(config)


def deepen(model: Any, layers: int) -> Any:
    """The same function with `layers` layers: copies of layers whose output projections are zero, spread evenly.

    A copy starts with useful queries, keys and gates; only what it writes has to be learned, and that starts at zero.
    """
    old = model.config.num_hidden_layers
    if layers < old:
        raise ValueError(f"{layers} layers asked for, the model has {old} already")
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    deeper = LlamaForCausalLM(config).to(model.dtype)
    deeper.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
    deeper.model.norm.load_state_dict(model.model.norm.state_dict())
    placed: set[int] = set()
    for index in range(layers):
        source = index * old // layers
        layer = deeper.model.layers[index]
        layer.load_state_dict(model.model.layers[source].state_dict())
        if source in placed:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)
        placed.add(source)
    deeper.tie_weights()
    return deeper
