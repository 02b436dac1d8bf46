"""Draft models in fewer bits: what they guess changes a little, the text that is verified does not.

On the CPU with torch's own kernels (one thread, weights 256 x 4096, microseconds for 1 row and for 8):

    float32, packed once                            63     116
    int8: weights per channel, one scale for inputs 31      49     `quantized::linear_dynamic`
    int4: weights in groups of 32, inputs bf16      12 to 40       `aten::_weight_int4pack_mm_for_cpu`

torchao's int8 is made for compiled graphs, and slower than that where every operation is called by itself. On a GPU it is what
applies (weight-only, both widths), if it is installed.
"""

from __future__ import annotations

import importlib
import platform
import warnings
from typing import Any

import torch
from torch import nn

from specfleet.core.errors import ConfigurationError
from specfleet.engine.rows import filled_up

WIDTHS = ("int8", "int4")
AUTO = "auto"
"""int8 where torch has products for it and the model takes it well, else the weights as they are."""
GROUP = 32
"""Weights of a row that share scale and zero point, in int4. Also the least width of an input that can be quantized so."""
TOLERANCE = {"int8": 0.15, "int4": 0.6}
"""How far the mean logit may be from the stock model's, in standard deviations: beyond it something else is wrong."""


class Int8Linear(nn.Module):
    """y = x A^T + b, A in int8 with a scale per output, x as it comes with one scale for all rows of a step: what is guessed
    may depend on whom its step was shared with, the text never does. Several linear layers of one input may be stacked into
    one. Products are of few sizes (`rows`): zeros change no scale."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        weight, bias = stacked(linears)
        self.out_features = weight.shape[0]
        scales = weight.abs().amax(1).clamp(min=1e-8) / 127.0
        with warnings.catch_warnings():
            # Said to go away in a later torch, and still the fastest by far in this one.
            warnings.simplefilter("ignore", UserWarning)
            zeros = torch.zeros(len(scales), dtype=torch.int64)
            rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(rounded, bias)
        self._product: Any = torch.ops.quantized.linear_dynamic
        self._seven_bits = saturates()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        full = filled_up(x)
        y: torch.Tensor = self._product(full, self.packed, self._seven_bits)
        return y if full is x else y[..., : x.shape[-2], :]

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """residual + forward(x)."""
        return self.forward(x).add_(residual)


class Int4Linear(nn.Module):
    """y = x A^T + b, A in int4 with scale and zero point per group, products in bfloat16."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        weight, self.bias = stacked(linears)
        self.out_features, width = weight.shape
        groups = weight.view(self.out_features, width // GROUP, GROUP)
        low, high = groups.amin(-1), groups.amax(-1)
        scales = (high - low).clamp(min=1e-6) / 15.0
        ids = ((groups - low[..., None]) / scales[..., None]).round().clamp(0, 15)
        ids = ids.to(torch.int32).view(self.out_features, width)
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(ids, 2)
        # The kernel reads a weight as (id - 8) * scale + zero.
        self.scales = torch.stack((scales.T, (low + 8.0 * scales).T), -1).to(torch.bfloat16).contiguous()
        self._product: Any = torch.ops.aten._weight_int4pack_mm_for_cpu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._product(x.to(torch.bfloat16), self.packed, GROUP, self.scales).to(x.dtype)
        return y if self.bias is None else y.add_(self.bias)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """residual + forward(x)."""
        return self.forward(x).add_(residual)


def saturates() -> bool:
    """Whether this processor adds products of bytes in 16 bits: two of 8 bits do not fit there, and are cut off in silence.
    Inputs of seven bits are safe."""
    return platform.machine() in ("x86_64", "AMD64") and not torch.cpu._is_vnni_supported()


def stacked(linears: tuple[nn.Linear, ...]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weights, and biases if any, of several linear layers of one input as those of one."""
    weight = torch.cat([linear.weight for linear in linears]) if len(linears) > 1 else linears[0].weight
    bias = torch.cat([linear.bias for linear in linears]).detach() if linears[0].bias is not None else None
    return weight.detach(), bias


def choices(quantize: str | None, device: torch.device) -> tuple[str | None, ...]:
    """The widths to try for `quantize`, best first; None is the model's own. On the CPU a small model's step is bound by
    reading its weights, which a verifier beside it keeps out of the caches; on a GPU it is bound by launches."""
    if quantize != AUTO:
        return (quantize,)
    return ("int8", None) if device.type == "cpu" and hasattr(torch.ops.quantized, "linear_dynamic") else (None,)


def check(quantize: str, module: Any) -> None:
    """Raises ConfigurationError where this module cannot run in so few bits here, naming the way out."""
    if quantize not in WIDTHS:
        raise ConfigurationError(f"quantize is {quantize!r}; choose {', '.join(WIDTHS)} or {AUTO}")
    if module.device.type == "cpu":
        odd = [one.in_features for one in module.modules() if isinstance(one, nn.Linear) and one.in_features % GROUP]
        if quantize == "int4" and odd:
            raise ConfigurationError(f"int4 needs inputs of a multiple of {GROUP}, and here one is {odd[0]}; use int8")
        if module.dtype != torch.float32:
            raise ConfigurationError(f"on the CPU {quantize} starts from float32, not {module.dtype}; use --dtype auto")


def on_device(quantize: str, module: nn.Module) -> None:
    """Replace the weights of `module`, in place, by torchao's. Raises ConfigurationError where torchao is missing."""
    try:
        torchao = importlib.import_module("torchao.quantization")
    except ImportError as error:
        raise ConfigurationError(f"--quantize {quantize} on a GPU needs torchao: pip install torchao") from error
    config = torchao.Int8WeightOnlyConfig() if quantize == "int8" else torchao.Int4WeightOnlyConfig(group_size=GROUP)
    torchao.quantize_(module, config)
