"""Tensor parallelism: one model over several devices, a process each, started by torchrun.

Each rank holds a share of every layer's heads and feed-forward units, and of the KV pool, and computes the same steps; two
sums over the ranks (all-reduce) in each layer put the shares together. Which products are cut by outputs (`colwise`) and which
by inputs (`rowwise`) is transformers' own tensor-parallel plan of the model; embeddings, norms and the output layer are whole
on each rank. transformers' machinery to apply the plan is not used: it changes from version to version, and here it is two
slices and a sum.

Rank 0 decides (`leader.Leader`): pages, batches, sampling, acceptance. The others follow.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import linear

from specfleet.core.errors import ConfigurationError

_IDLE = timedelta(days=365)
"""How long ranks wait for a step: a server may have nothing to do. Whoever is gone is noticed at once all the same."""
_REPLICATED = {"replicated_with_grad_allreduce"}
"""Styles of a plan that leave a module whole."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that share a model, and which one of them this is."""

    rank: int
    size: int
    device: str
    """This one's."""
    control: Any
    """Process group on the CPU, for what is told; sums go over the default group, on the devices."""

    def least(self, value: int) -> int:
        """The smallest of all ranks' values."""
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MIN, group=self.control)
        return int(found)

    def tell(self, message: tuple[str, Any] | None) -> tuple[str, Any]:
        """Rank 0's message, on every rank."""
        box = [message]
        dist.broadcast_object_list(box, src=0, group=self.control)
        assert box[0] is not None
        return box[0]

    def leave(self) -> None:
        """Part from the others, who do so too. Threads of the process groups that outlive the interpreter abort it."""
        dist.destroy_process_group()


def join(device: str) -> Ranks:
    """Meet the other ranks that torchrun started with this one. `cuda` becomes `cuda:LOCAL_RANK`."""
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size(), device, dist.new_group(backend="gloo", timeout=_IDLE))


def shard(module: Any, ranks: Ranks) -> None:
    """Leave of `module`, in place, this rank's share. Raises ConfigurationError where so many cannot share the model."""
    config = module.config.get_text_config()
    plan = getattr(config, "base_model_tp_plan", None)
    kind = type(module).__name__
    if not plan:
        raise ConfigurationError(f"{kind} has no tensor-parallel plan; run it as one process")
    for what, count in (
        ("key-value heads", getattr(config, "num_key_value_heads", None) or config.num_attention_heads),
        ("attention heads", config.num_attention_heads),
        ("feed-forward units", config.intermediate_size),
    ):
        if count % ranks.size:
            raise ConfigurationError(f"{kind} has {count} {what}, which {ranks.size} ranks cannot share equally")
    # Listed first: replacing a module changes the tree.
    for name, part in list(module.base_model.named_modules()):
        style = next((style for pattern, style in plan.items() if _matches(pattern, name)), None)
        if style is None or style in _REPLICATED:
            continue
        if style not in ("colwise", "rowwise") or type(part) is not nn.Linear:
            raise ConfigurationError(
                f"{kind} is cut {style} at {name}, which the engine cannot do; run it as one process"
            )
        if style == "colwise":
            part.weight = _share(part.weight, 0, ranks)
            if part.bias is not None:
                part.bias = _share(part.bias, 0, ranks)
            part.out_features = part.weight.shape[0]
        else:
            parent, _, child = name.rpartition(".")
            setattr(module.base_model.get_submodule(parent), child, RowwiseLinear(part, ranks))


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", r"\d+"), name) is not None


def _share(whole: torch.Tensor, dimension: int, ranks: Ranks) -> nn.Parameter:
    part = whole.chunk(ranks.size, dimension)[ranks.rank]
    return nn.Parameter(part.detach().clone(), requires_grad=False)


class RowwiseLinear(nn.Linear):
    """A linear layer whose inputs are spread over the ranks: each multiplies its own, and the sum is everybody's."""

    def __init__(self, whole: nn.Linear, ranks: Ranks) -> None:
        nn.Module.__init__(self)
        self.weight = _share(whole.weight, 1, ranks)
        self.bias = (
            whole.bias if ranks.rank == 0 or whole.bias is None else nn.Parameter(torch.zeros_like(whole.bias), False)
        )
        self.out_features, self.in_features = self.weight.shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return summed(linear(x, self.weight, self.bias))


def summed(x: torch.Tensor) -> torch.Tensor:
    """`x` of all ranks added up, in place."""
    dist.all_reduce(x)
    return x
