"""From logits to the distribution that a request asks for: temperature, top-k, top-p, min-p, in this order.

Same meaning as transformers' TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper and MinPLogitsWarper, with one
choice of our own: where tokens tie with the last one kept, all of them stay (transformers keeps those that its sort
happened to put first), so that the outcome is a function of the row alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from specfleet.core.types import SamplingParams

_TOP_P_FIRST_LOOK = 128
"""top_p looks at this many of the likeliest tokens before it sorts the whole vocabulary."""

_SMALLEST_TEMPERATURE = 1e-30
"""Below this float32 divides by zero; the distribution has long been a point by then."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """The part of the sampling parameters that shapes the distribution; rows of equal ones are processed together."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float

    @classmethod
    def of(cls, sampling: SamplingParams) -> Truncation:
        return cls(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)


def process(logits: torch.Tensor, truncation: Truncation) -> torch.Tensor:
    """Log-probabilities up to a constant per row: 0 for the likeliest token, minus infinity where a token is cut off.

    `logits`: float32 (rows, vocabulary), left as they are. Temperature must be above 0. A new tensor of the same shape.
    """
    scores = (logits - logits.amax(-1, keepdim=True)).div_(max(truncation.temperature, _SMALLEST_TEMPERATURE))
    if 0 < truncation.top_k < scores.shape[-1]:
        cut = torch.topk(scores, truncation.top_k, dim=-1).values[:, -1:]
        scores.masked_fill_(scores < cut, -math.inf)
    if truncation.top_p < 1.0:
        scores.masked_fill_(scores < _nucleus_cut(scores, truncation), -math.inf)
    if truncation.min_p > 0.0:
        scores.masked_fill_(scores < math.log(truncation.min_p), -math.inf)
    return scores


def _nucleus_cut(scores: torch.Tensor, truncation: Truncation) -> torch.Tensor:
    """The smallest score that stays, (rows, 1): a token stays while the likelier ones have less than top_p together
    (Holtzman et al. 2020, arXiv 1904.09751)."""
    size = scores.shape[-1]
    look = min(size, truncation.top_k or _TOP_P_FIRST_LOOK)
    normaliser = torch.logsumexp(scores, dim=-1, keepdim=True)
    best = torch.topk(scores, look, dim=-1).values
    mass = (best - normaliser).exp_().cumsum(-1)
    if look < size and not truncation.top_k and bool((mass[:, -1] < truncation.top_p).any()):
        best = torch.sort(scores, dim=-1, descending=True).values
        mass = (best - normaliser).exp_().cumsum(-1)
    kept = (mass < truncation.top_p).sum(-1, keepdim=True)
    return best.gather(-1, kept.clamp_(max=best.shape[-1] - 1))


def top_support(scores: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `size` likeliest tokens of each row: (ids, log-probabilities renormalised over them), both (rows, size)."""
    best, ids = torch.topk(scores, min(size, scores.shape[-1]), dim=-1)
    return ids, torch.log_softmax(best, dim=-1)


def draw(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One draw from each row of unnormalised probabilities, int64 (rows,), by inversion in float64: never a token of
    probability 0, and one uniform a row, as in the reference."""
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    uniforms = torch.rand((len(cumulative), 1), generator=generator, dtype=torch.float64, device=cumulative.device)
    wanted = uniforms.clamp_(max=1.0 - 2.0**-40) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp_(max=cumulative.shape[-1] - 1)
