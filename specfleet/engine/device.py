"""What a device is called, for people; which one kernels are launched on; how much its caches hold."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

_CPUS = Path("/proc/cpuinfo")
_LAST_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
"""Linux writes kibibytes, as in `32768K`."""


def device_name(device: torch.device) -> str:
    """The GPU's name; for the CPU its name, its cores, and how many threads torch uses of them."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = _CPUS.read_text().splitlines() if _CPUS.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or 'CPU'}, {os.cpu_count()} cores, threads {torch.get_num_threads()}"


def launching_on(device: torch.device) -> AbstractContextManager[object]:
    """Within it kernels start on `device`: Triton takes the thread's current one, wherever its tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def last_cache_bytes(size: Path = _LAST_CACHE) -> int:
    """What the processor's third-level cache holds; 0 where the system does not say."""
    text = size.read_text().strip() if size.exists() else ""
    return int(text.removesuffix("K")) * 1024 if text.removesuffix("K").isdigit() else 0
