"""The seeded rule: in each row the kept token of largest log p + G.

Which tokens top_p keeps takes a sort of the row; whether it keeps one given token takes a sum over those likelier than that.
So on a CPU tokens race first (Gumbel-max), and only the winner is asked: if it is cut off, so is whatever is no likelier, and
the others race again (race_numba). Those that race are all that may be kept; most of the vocabulary cannot be, by a bound
that takes no sort.

What comes out is what `seeded_argmax_of_all` says, which serves on other devices and without Numba.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from specfleet.core.extras import missing
from specfleet.engine.noise import add_gumbel
from specfleet.engine.sampling import SMALLEST_TEMPERATURE, Truncation, argmax, process, tempered

_COMPILES = not missing("numba")
NOBODY = -1
"""In place of a token where a row has none."""


def seeded_argmax(
    logits: torch.Tensor, truncation: Truncation, keys: torch.Tensor, runners_up: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """argmax_v(log p(v) + G(v)) over the kept tokens of each row, and where `runners_up` asks which would have been it without
    that one: ids, int64 (rows,) each, NOBODY where there is none.

    `logits`: float32 (rows, vocabulary), left as they are. `keys`: int64 (rows,), of `noise.noise_keys`. Rows whose logits are
    not finite get anything, and disturb no others.
    """
    if logits.device.type != "cpu" or not _COMPILES:
        return seeded_argmax_of_all(logits, truncation, keys, runners_up)
    from specfleet.engine.race_numba import race  # imported where it is used: numba may be missing

    rows, temperature = logits, max(truncation.temperature, SMALLEST_TEMPERATURE)
    if truncation.top_k > 0:
        rows, temperature = tempered(logits, truncation), 1.0
    least_score = math.log(truncation.min_p) if truncation.min_p > 0.0 else -math.inf
    first, second = np.full(len(logits), NOBODY), np.full(len(logits), NOBODY)
    own = keys.numpy().view(np.uint64)
    race(
        rows.numpy(), np.float32(temperature), truncation.top_p, np.float32(least_score), own, first, second, runners_up
    )
    return torch.from_numpy(first), torch.from_numpy(second)


def prepare(device: torch.device) -> None:
    """Compile what `seeded_argmax` needs, or load it, which somebody's first token should not wait for."""
    seeded_argmax(
        torch.zeros(1, 2, device=device), Truncation(1.0, 0, 1.0, 0.0), torch.zeros(1, dtype=torch.int64, device=device)
    )


def seeded_argmax_of_all(
    logits: torch.Tensor, truncation: Truncation, keys: torch.Tensor, runners_up: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, by noise for every token, kept or not, on any device."""
    values = process(logits, truncation)
    add_gumbel(values, keys)
    first = argmax(values)
    if not runners_up:
        return first, torch.full_like(first, NOBODY)
    second = argmax(values.scatter_(-1, first[:, None], -math.inf))
    none = values.gather(-1, second[:, None])[:, 0] == -math.inf
    return first, second.masked_fill_(none, NOBODY)
