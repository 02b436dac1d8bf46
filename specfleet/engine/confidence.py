"""How sure a draft model is of the tokens it chose: what early stopping goes by (drafter.early_stop).

All of a step's rows at once, in a few passes over the vocabulary; a handful of numbers a row comes back to the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch

from specfleet.core.extras import missing
from specfleet.core.records import made
from specfleet.core.step import Confidence

LIKELIEST = -1
"""In place of a runner-up's id: the likeliest token beside the chosen one."""
NOT_ASKED = -2
"""In place of one where nobody asked."""
_COMPILES = not missing("numba")


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
    if not logits.is_cpu:
        return _on_device(logits, best, chosen, runners_up)
    # No function that can be spared: each takes ten times as long behind a forward pass as in a loop of its own.
    on_host, rows = _kernel(), logits.numpy()
    return [on_host(rows, row, best[row], token, runners_up[row]) for row, token in enumerate(chosen)]


def prepare(device: torch.device) -> None:
    """Compile what `confidences` needs, or load it, which somebody's first token should not wait for."""
    confidences(torch.zeros(1, 2, device=device), [0.0], [0])


@cache
def _kernel() -> Callable[[np.ndarray, int, float, int, int | None], Confidence]:
    """Of one row."""
    if not _COMPILES:
        return _on_host
    from specfleet.engine.confidence_numba import confidence

    def compiled(logits: np.ndarray, row: int, best: float, chosen: int, runner_up: int | None) -> Confidence:
        if runner_up is None:
            return made(Confidence, (*confidence(logits, row, best, chosen, NOT_ASKED)[:4], None, 0.0))
        return made(Confidence, confidence(logits, row, best, chosen, runner_up))

    return compiled


def _on_host(rows: np.ndarray, row: int, best: float, chosen: int, runner_up: int | None) -> Confidence:
    """Without Numba."""
    logits = rows[row]
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
