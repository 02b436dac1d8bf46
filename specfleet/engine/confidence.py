"""How sure a draft model is of the tokens it chose: what early stopping goes by (drafter.early_stop).

All of a step's rows at once, in a few passes over the vocabulary; a handful of numbers a row comes back to the host.
"""

from __future__ import annotations

import numpy as np
import torch

from specfleet.core.step import Confidence


def confidences(logits: torch.Tensor, best: torch.Tensor, chosen: torch.Tensor) -> list[Confidence]:
    """One for each row. `logits`: float32 (rows, vocabulary); `best` (rows,), the largest of each row; `chosen` (rows,), ids.

    Of the model's own distribution, before temperature and truncation: what a request cuts off says nothing about how much
    drafter and target agree.
    """
    # As in sampling: numpy passes over rows on the CPU in half of torch's time, most of which is spent between its operations.
    measure = _on_host if logits.device.type == "cpu" else _on_device
    return [Confidence(*row) for row in measure(logits, best, chosen)]


def _on_host(logits: torch.Tensor, best: torch.Tensor, chosen: torch.Tensor) -> list[list[float]]:
    x = logits.numpy() - best.numpy()[:, None]
    e = np.exp(x)
    z = e.sum(-1)
    own = e[np.arange(len(e)), chosen.numpy()]
    mean = np.vecdot(e, x) / z
    variance = np.vecdot(np.multiply(x, x, out=x), e) / z - mean * mean
    # In place: where its values stand matters no more.
    e.partition(e.shape[-1] - 2, axis=-1)
    margin = (1.0 - e[:, -2]) / z
    columns = (own / z, np.log(z) - mean, margin, np.sqrt(np.maximum(variance, 0.0)))
    found: list[list[float]] = np.stack(columns, 1).tolist()
    return found


def _on_device(logits: torch.Tensor, best: torch.Tensor, chosen: torch.Tensor) -> list[list[float]]:
    x = logits - best[:, None]
    e = x.exp()
    z = e.sum(-1)
    weighted = e * x
    mean = weighted.sum(-1) / z
    variance = (weighted * x).sum(-1) / z - mean * mean
    own = e.gather(-1, chosen[:, None])[:, 0]
    margin = (1.0 - torch.topk(e, 2, dim=-1).values[:, 1]) / z
    found: list[list[float]] = torch.stack(
        (own / z, z.log() - mean, margin, variance.clamp(min=0.0).sqrt()), 1
    ).tolist()
    return found
