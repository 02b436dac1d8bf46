"""How sure a draft model is of the tokens it chose: what early stopping goes by (drafter.early_stop).

All of a step's rows at once, in a few passes over the vocabulary; a handful of numbers a row comes back to the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from specfleet.core.step import Confidence


def confidences(logits: torch.Tensor, best: Sequence[float], chosen: Sequence[int]) -> list[Confidence]:
    """One for each row. `logits`: float32 (rows, vocabulary); `best`, the largest of each row; `chosen`, ids.

    Of the model's own distribution, before temperature and truncation: what a request cuts off says nothing about how much
    drafter and target agree.
    """
    if logits.device.type != "cpu":
        return _on_device(logits, best, chosen)
    return [_on_host(*row) for row in zip(logits.numpy(), best, chosen, strict=True)]


def _on_host(logits: np.ndarray, best: float, chosen: int) -> Confidence:
    """Row by row, and in numpy: behind a forward pass every operation costs ten times what it does in a loop of its own, so
    that how few there are counts for more than how many rows each takes."""
    x = logits - np.float32(best)
    e = np.exp(x)
    z = float(e.sum())
    own = float(e[chosen])
    entropy = math.log(z) - float(e.dot(x)) / z
    spread = 2.0 * math.log(z) - math.log(float(e.dot(e)))
    e[chosen if own == 1.0 else int(e.argmax())] = 0.0
    return Confidence(own / z, entropy, (1.0 - float(e.max())) / z, spread)


def _on_device(logits: torch.Tensor, best: Sequence[float], chosen: Sequence[int]) -> list[Confidence]:
    x = logits - torch.tensor(best, device=logits.device)[:, None]
    e = x.exp()
    z = e.sum(-1)
    own = e.gather(-1, torch.tensor(chosen, device=logits.device)[:, None])[:, 0]
    entropy = z.log() - (e * x).sum(-1) / z
    spread = 2.0 * z.log() - e.square().sum(-1).log()
    margin = (1.0 - torch.topk(e, 2, dim=-1).values[:, 1]) / z
    return [Confidence(*row) for row in torch.stack((own / z, entropy, margin, spread), 1).tolist()]
