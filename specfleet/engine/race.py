"""The seeded rule: in each row the kept token of largest log p + G.

Which tokens top_p keeps takes a sort of the row; whether it keeps one given token takes a sum over those likelier than that.
So on a CPU tokens race first (Gumbel-max), and only the winner is asked: if it is cut off, so is whatever is no likelier, and
the others race again (race_numba). Those that race are all that may be kept; most of the vocabulary cannot be, by a bound
that takes no sort.

What comes out is what `seeded_argmax_of_all` says, which serves on other devices and without Numba.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from specfleet.core.extras import missing
from specfleet.engine.noise import add_gumbel, noise_keys
from specfleet.engine.sampling import Truncation, argmax, process, tempered

_COMPILES = not missing("numba")
NOBODY = -1
"""In place of a token where a row has none."""


@dataclass(slots=True)
class SeededRows:
    """Rows of a step's logits in which a seed chooses. Four lists, not a list of rows: arrays are made of them."""

    rows: list[int] = field(default_factory=list)
    truncations: list[Truncation] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    """Absolute position of the token that each row chooses."""


class Raced(NamedTuple):
    """Of each row: who won, int64 (rows,), who would have won without that one, and the largest logit, float32 (rows,), NaN if
    one is. NOBODY where there is none, or nobody asked."""

    first: torch.Tensor
    second: torch.Tensor
    largest: torch.Tensor


def seeded_argmax(logits: torch.Tensor, own: SeededRows, runners_up: bool = False) -> Raced:
    """argmax_v(log p(v) + G(v)) over the kept tokens of each of `own.rows`, and where `runners_up` asks which would have been
    it without that one.

    `logits`: float32 (any, vocabulary), left as they are. Rows that are not finite get anything, and disturb no others.
    """
    if logits.device.type != "cpu" or not _COMPILES:
        return _grouped(logits, own, runners_up)
    from specfleet.engine.race_numba import race  # imported where it is used: numba may be missing

    # Each numpy function that was not called just before takes 10 to 30 us behind a forward pass: as few as there can be.
    count, rows, truncations = len(own.rows), np.array(own.rows), np.array(own.truncations)
    seeds, positions = np.array(own.seeds, dtype=np.uint64), np.array(own.positions, dtype=np.uint64)
    first, second, tops = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.float32)
    cut = any(one.top_k for one in own.truncations)
    scores = _cut_to_top_k(logits, rows, truncations) if cut else logits
    race(scores.numpy(), rows, truncations, seeds, positions, first, second, tops, runners_up)
    largest = logits[own.rows].amax(-1) if cut else torch.from_numpy(tops)
    return Raced(torch.from_numpy(first), torch.from_numpy(second), largest)


def _cut_to_top_k(logits: torch.Tensor, rows: np.ndarray, truncations: np.ndarray) -> torch.Tensor:
    """The rows for which it is asked as scores, at the end of `logits`; `rows` and `truncations` say so then."""
    for own in {tuple(one) for one in truncations.tolist() if one[1]}:
        places = np.flatnonzero((truncations == own).all(-1))
        temperature, top_k, top_p, min_p = own
        scores = tempered(logits[rows[places]], Truncation(temperature, int(top_k), top_p, min_p))
        rows[places] = range(len(logits), len(logits) + len(places))
        truncations[places, :2] = 1.0, 0.0
        logits = torch.cat([logits, scores])
    return logits


def _grouped(logits: torch.Tensor, own: SeededRows, runners_up: bool) -> Raced:
    """`seeded_argmax_of_all`, rows of one truncation together."""
    keys = noise_keys(own.seeds, own.positions, logits.device)
    if len(own.rows) < len(logits):
        logits = logits[own.rows]
    groups: dict[Truncation, list[int]] = {}
    for place, truncation in enumerate(own.truncations):
        groups.setdefault(truncation, []).append(place)
    largest = logits.amax(-1)
    if len(groups) == 1:
        return Raced(*seeded_argmax_of_all(logits, own.truncations[0], keys, runners_up), largest)
    found = torch.empty(2, len(keys), dtype=torch.int64, device=logits.device)
    for truncation, places in groups.items():
        found[:, places] = torch.stack(seeded_argmax_of_all(logits[places], truncation, keys[places], runners_up))
    return Raced(found[0], found[1], largest)


def prepare(device: torch.device) -> None:
    """Compile what `seeded_argmax` needs, or load it, which somebody's first token should not wait for."""
    seeded_argmax(torch.zeros(1, 2, device=device), SeededRows([0], [Truncation(1.0, 0, 1.0, 0.0)], [0], [0]))


def seeded_argmax_of_all(
    logits: torch.Tensor, truncation: Truncation, keys: torch.Tensor, runners_up: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of all rows of `logits`, by noise for every token, kept or not, on any device. `keys`: int64 (rows,), of
    `noise.noise_keys`."""
    values = process(logits, truncation)
    add_gumbel(values, keys)
    first = argmax(values)
    if not runners_up:
        return first, torch.full_like(first, NOBODY)
    second = argmax(values.scatter_(-1, first[:, None], -math.inf))
    none = values.gather(-1, second[:, None])[:, 0] == -math.inf
    return first, second.masked_fill_(none, NOBODY)
