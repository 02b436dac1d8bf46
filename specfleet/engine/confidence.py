"""How sure a draft model is of the tokens it chose: what early stopping goes by (drafter.early_stop).

All of a step's rows at once, in a few passes over the vocabulary; a handful of numbers a row comes back to the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from specfleet.core.step import Confidence

LIKELIEST = -1
"""In place of a runner-up's id: the likeliest token beside the chosen one."""


def confidences(
    logits: torch.Tensor,
    best: Sequence[float],
    chosen: Sequence[int],
    runners_up: Sequence[int | None] | None = None,
) -> list[Confidence]:
    """One for each row. `logits`: float32 (rows, vocabulary); `best`, the largest of each row; `chosen`, ids; `runners_up`,
    ids or LIKELIEST, None where there is none or nobody asked.

    Of the model's own distribution, before temperature and truncation: what a request cuts off says nothing about how much
    drafter and target agree.
    """
    runners_up = runners_up or [None] * len(chosen)
    if logits.device.type != "cpu":
        return _on_device(logits, best, chosen, runners_up)
    return [_on_host(*row) for row in zip(logits.numpy(), best, chosen, runners_up, strict=True)]


def _on_host(logits: np.ndarray, best: float, chosen: int, runner_up: int | None) -> Confidence:
    """Row by row, and in numpy: behind a forward pass every operation costs ten times what it does in a loop of its own, so
    that how few there are counts for more than how many rows each takes."""
    x = logits - np.float32(best)
    e = np.exp(x)
    z = float(e.sum())
    own = float(e[chosen])
    entropy = math.log(z) - float(e.dot(x)) / z
    spread = 2.0 * math.log(z) - math.log(float(e.dot(e)))
    likeliest = chosen if own == 1.0 else int(e.argmax())
    e[likeliest] = 0.0
    second = int(e.argmax())
    margin = (1.0 - float(e[second])) / z
    if runner_up == LIKELIEST:
        runner_up = second if likeliest == chosen else likeliest
    share = 0.0
    if runner_up is not None and z > own:
        share = (1.0 if runner_up == likeliest else float(e[runner_up])) / (z - own)
    return Confidence(own / z, entropy, margin, spread, runner_up, min(share, 1.0))


def _on_device(
    logits: torch.Tensor, best: Sequence[float], chosen: Sequence[int], runners_up: Sequence[int | None]
) -> list[Confidence]:
    x = logits - torch.tensor(best, device=logits.device)[:, None]
    e = x.exp()
    z = e.sum(-1)
    picked = torch.tensor(chosen, device=logits.device)[:, None]
    own = e.gather(-1, picked)[:, 0]
    entropy = z.log() - (e * x).sum(-1) / z
    spread = 2.0 * z.log() - e.square().sum(-1).log()
    margin = (1.0 - torch.topk(e, 2, dim=-1).values[:, 1]) / z
    likeliest = e.scatter(-1, picked, 0.0).argmax(-1)
    given = torch.tensor([LIKELIEST if one is None else one for one in runners_up], device=logits.device)
    second = torch.where(given == LIKELIEST, likeliest, given)
    share = e.gather(-1, second[:, None])[:, 0] / (z - own).clamp_min(torch.finfo(e.dtype).tiny)
    rows = torch.stack((own / z, entropy, margin, spread, share.clamp(max=1.0)), 1).tolist()
    return [
        Confidence(*row[:4], None, 0.0) if one is None else Confidence(*row[:4], token, row[4])
        for row, token, one in zip(rows, second.tolist(), runners_up, strict=True)
    ]
