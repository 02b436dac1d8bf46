"""How large a KV pool the device has room for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specfleet.core.errors import ConfigurationError
from specfleet.core.step import PAGE_SIZE
from specfleet.engine.kv_pool import LayerShape

CPU_TOKENS = 16_384
"""Where memory is also everybody else's."""
_SHARE = 0.9
"""Of a device's memory, used by weights and KV pool together; the rest is for activations, graphs and libraries."""


def page_bytes(layers: Sequence[LayerShape], dtype: torch.dtype) -> int:
    """Keys and values of one page in all layers."""
    return PAGE_SIZE * dtype.itemsize * sum(one.kv_heads * (one.key_dim + one.value_dim) for one in layers)


def pages_that_fit(free: int, total: int, page: int, share: float = _SHARE) -> int:
    """Pages of `page` bytes for a device with `free` of `total` bytes left, weights loaded. Raises ConfigurationError if
    there is room for none."""
    room = free - int((1.0 - share) * total)
    if room < page:
        raise ConfigurationError(
            f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free beside the weights, and {1.0 - share:.0%} of the "
            "device are kept for activations: no room for a KV cache; choose a smaller model, or say kv_cache_tokens"
        )
    return room // page


def default_pages(layers: Sequence[LayerShape], dtype: torch.dtype, device: torch.device) -> int:
    """Pages of a pool whose size nobody has said."""
    if device.type != "cuda":
        return CPU_TOKENS // PAGE_SIZE
    free, total = torch.cuda.mem_get_info(device)
    return pages_that_fit(free, total, page_bytes(layers, dtype))
