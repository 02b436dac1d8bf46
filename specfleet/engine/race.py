"""The seeded rule on a CPU: in each row the kept token of largest log p + G, without a sort, and with noise only where it can
decide.

Which tokens top_p keeps takes a sort of the row; whether it keeps one given token takes a sum over those likelier than that.
So tokens race first (Gumbel-max), and only the winner is asked: if it is cut off, so is whatever is no likelier, and the
others race again. Those that race are all that may be kept; most of the vocabulary cannot be, by a bound that takes no sort.

What comes out is what `seeded_argmax_of_all` says, which serves where nothing is cut off, and other devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from specfleet.engine.noise import add_gumbel, gumbel_at
from specfleet.engine.sampling import Truncation, argmax, process, tempered

NOBODY = -1
"""In place of a token where a row has none."""
_EVEN_PARTS = (8.0, 1.0)
"""Tokens below so many even parts of what top_p may cut off do not race. One part is safe: all of them together cannot exceed
what may go. Several are mostly right, and whether they are is seen by a sum."""


def seeded_argmax(
    logits: torch.Tensor, truncation: Truncation, keys: torch.Tensor, runners_up: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """argmax_v(log p(v) + G(v)) over the kept tokens of each row, and where `runners_up` asks which would have been it without
    that one: ids, int64 (rows,) each, NOBODY where there is none.

    `logits`: float32 (rows, vocabulary), left as they are. `keys`: int64 (rows,), of `noise.noise_keys`. Rows whose logits are
    not finite get anything, and disturb no others.
    """
    if not truncation.cuts or logits.device.type != "cpu":
        return seeded_argmax_of_all(logits, truncation, keys, runners_up)
    first, second = np.full(len(logits), NOBODY), np.full(len(logits), NOBODY)
    for rows, field in _fields(tempered(logits, truncation).numpy(), truncation):
        values = field.scores + gumbel_at(keys.numpy()[rows][field.rows], field.tokens)
        first[rows] = found = field.winners(values)
        if runners_up:
            values[field.tokens == found[field.rows]] = -np.inf
            second[rows] = field.winners(values)
    return torch.from_numpy(first), torch.from_numpy(second)


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


class Field(NamedTuple):
    """Of some rows, the tokens that may be kept, one row's behind the other's: id, score (log p up to a constant of the row),
    weight (exp of that)."""

    starts: np.ndarray
    """Where each row's begin; every row has some."""
    rows: np.ndarray
    """Whose each is, counted from 0."""
    tokens: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    certain: np.ndarray
    """Of each row: a token stays whatever it is if those likelier weigh less. What all tokens weigh, those that are not here
    included, less what top_p may cut off."""

    def winners(self, values: np.ndarray) -> np.ndarray:
        """The kept token of largest value in each row, of equals the first: int64 (rows,). NOBODY where that is minus
        infinity."""
        best = np.maximum.reduceat(values, self.starts)
        at = np.flatnonzero(values == best[self.rows])
        if len(at) > len(best):
            at = at[np.searchsorted(self.rows[at], np.arange(len(best)))]
        found = self.tokens[at]
        found[best == -np.inf] = NOBODY
        likelier = self.scores > self.scores[at][self.rows]
        before = np.add.reduceat(self.weights * likelier, self.starts, dtype=np.float64)
        cut = before >= self.certain
        if cut.any():
            rest, where = self.only(cut, likelier & cut[self.rows])
            found[cut] = rest.winners(values[where])
        return found

    def only(self, rows: np.ndarray, tokens: np.ndarray) -> tuple[Field, np.ndarray]:
        """These rows (a mask), and of them these tokens (a mask); and where they were."""
        at = np.flatnonzero(tokens)
        own = (np.cumsum(rows) - 1)[self.rows[at]]
        starts = np.searchsorted(own, np.arange(np.count_nonzero(rows)))
        return Field(starts, own, self.tokens[at], self.scores[at], self.weights[at], self.certain[rows]), at


def _fields(scores: np.ndarray, truncation: Truncation) -> Iterator[tuple[np.ndarray, Field]]:
    """The tokens that may be kept, in one field or two, and which rows each is of. Rows that are not finite are in none."""
    weights, rows = np.exp(scores), np.arange(len(scores))
    if truncation.top_p >= 1.0:
        least = math.log(truncation.min_p) if truncation.min_p > 0.0 else np.finfo(np.float32).min
        yield _field(rows, scores, weights, scores >= least, np.full(len(rows), np.inf))
        return
    total = weights.sum(-1, dtype=np.float64)
    spare = (1.0 - truncation.top_p) * total
    certain = np.maximum(total - spare, np.finfo(np.float64).tiny)
    for parts in _EVEN_PARTS:
        floors = np.clip(spare * (parts / scores.shape[-1]), truncation.min_p, 1.0)
        own = slice(None) if len(rows) == len(scores) else rows
        candidates = weights[own] >= floors[own].astype(np.float32)[:, None]
        rows, field = _field(rows, scores[own], weights[own], candidates, certain[own])
        here = np.add.reduceat(field.weights, field.starts, dtype=np.float64)
        sure = (here >= field.certain) | (floors[rows] <= truncation.min_p)
        if parts <= 1.0 or sure.all():
            yield rows, field
            return
        if sure.any():
            yield rows[sure], field.only(sure, sure[field.rows])[0]
        rows = rows[~sure]


def _field(
    rows: np.ndarray, scores: np.ndarray, weights: np.ndarray, candidates: np.ndarray, certain: np.ndarray
) -> tuple[np.ndarray, Field]:
    """The candidates (a mask) of `rows`, whose are the other arguments; without rows that have none."""
    places = np.flatnonzero(candidates)
    whose = places // scores.shape[-1]
    tokens = places - whose * scores.shape[-1]
    starts = np.searchsorted(whose, np.arange(len(rows)))
    if len(places) == 0 or (whose[starts % len(places)] != np.arange(len(rows))).any():
        some = np.isin(np.arange(len(rows)), whose)
        rows, starts, certain = rows[some], starts[some], certain[some]
        whose = (np.cumsum(some) - 1)[whose]
    return rows, Field(starts, whose, tokens, scores.reshape(-1)[places], weights.reshape(-1)[places], certain)
