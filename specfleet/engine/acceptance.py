"""Which drafted tokens the target accepts, and the one token it adds. The two rules of architecture.md, section 4.

Each rule stands here twice: as a short pure function beside its citation, and batched over a step. Tests hold the second
to the first. p target, q draft; a round commits accepted + 1 tokens, the last one *recovered* or *bonus*.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from specfleet.core.step import Alternative, DraftDistribution
from specfleet.engine.sampling import draw


def match(target: Sequence[int], draft: Sequence[int]) -> tuple[int, list[int]]:
    """Accept while equal: (accepted, committed tokens).

    `target[i]` is the target's own token at the place of `draft[i]`, given the draft before it; one more follows for the
    bonus. For greedy and seeded text, where the target's token is a function of the position alone: drafter-invariant
    coupling (Daliri, Musco, Suresh 2024, arXiv 2408.07978).
    """
    accepted = 0
    while accepted < len(draft) and draft[accepted] == target[accepted]:
        accepted += 1
    return accepted, list(target[: accepted + 1])


def match_tree(
    target: Sequence[int], draft: Sequence[int], alternatives: Sequence[Alternative]
) -> tuple[int, list[int], int | None]:
    """`match` where side branches of one token stand beside the draft: (accepted of the draft, committed tokens, which
    alternative was accepted, if one was).

    `target` as for `match`, and then one for each alternative: the target's own token behind it. The walk goes from the root
    along whatever equals the target's token, as tree verification does (Miao et al. 2024, SpecInfer, arXiv 2305.09781).
    """
    accepted, committed = match(target, draft)
    if accepted < len(draft):
        for number, (offset, token) in enumerate(alternatives):
            if offset == accepted and token == committed[-1]:
                return accepted, [*committed, target[len(draft) + 1 + number]], number
    return accepted, committed, None


def reject(
    p: np.ndarray, q: np.ndarray, draft: Sequence[int], accept_uniforms: Sequence[float], final_uniform: float
) -> tuple[int, int]:
    """Accept x with min(1, p(x)/q(x)); the first refused is replaced by a draw from norm(max(0, p - q)), and after full
    acceptance a bonus follows from p: (accepted, last token).

    `p`: (drafted + 1, vocabulary), `q`: (drafted, vocabulary), rows summing to 1; uniforms in [0, 1). Leviathan, Kalman,
    Matias 2023 (arXiv 2211.17192), algorithm 1; Chen et al. 2023 (arXiv 2302.01318), algorithm 2.
    """
    accepted = 0
    for x, uniform in zip(draft, accept_uniforms, strict=True):
        if not uniform * q[accepted, x] < p[accepted, x]:
            break
        accepted += 1
    rest = p[accepted]
    if accepted < len(draft):
        residual = np.maximum(0.0, rest - q[accepted])
        rest = residual if residual.sum() > 0 else rest
    cumulative = np.cumsum(rest)
    return accepted, int(np.searchsorted(cumulative, final_uniform * cumulative[-1], side="right"))


def match_batch(targets: Sequence[int], drafts: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """`match` over consecutive stretches of `targets`, each one longer than its draft. On the host: the ids had to come
    here anyway, and they are all that did."""
    results, first = [], 0
    for draft in drafts:
        results.append(match(targets[first : first + len(draft) + 1], draft))
        first += len(draft) + 1
    return results


class SparseDrafts:
    """The drafted tokens of several items and the truncated distributions q they came from, as padded tensors.

    With m items, d the longest draft and k the largest support: tokens (m, d); counts (m,); ids and probabilities
    (m, d, k). Padding has id 0 and probability 0. `own` (m, d) is q of the drafted token itself.
    """

    def __init__(
        self, tokens: Sequence[Sequence[int]], q: Sequence[Sequence[DraftDistribution]], device: torch.device
    ) -> None:
        longest = max((len(draft) for draft in tokens), default=0)
        support = max((len(entry.token_ids) for row in q for entry in row), default=0) or 1
        ids = np.zeros((len(tokens), longest, support), dtype=np.int64)
        probabilities = np.zeros((len(tokens), longest, support), dtype=np.float32)
        drafted = np.zeros((len(tokens), longest), dtype=np.int64)
        for i, (draft, row) in enumerate(zip(tokens, q, strict=True)):
            drafted[i, : len(draft)] = draft
            for j, entry in enumerate(row):
                ids[i, j, : len(entry.token_ids)] = entry.token_ids
                probabilities[i, j, : len(entry.token_ids)] = entry.probabilities
        own = np.where(ids == drafted[:, :, None], probabilities, 0.0).sum(-1)
        self.longest = longest
        self.counts = torch.tensor([len(draft) for draft in tokens], dtype=torch.int64, device=device)
        self.tokens = torch.from_numpy(drafted).to(device)
        self.ids = torch.from_numpy(ids).to(device)
        self.probabilities = torch.from_numpy(probabilities).to(device)
        self.own = torch.from_numpy(own.astype(np.float32)).to(device)


def reject_batch(
    p: torch.Tensor, first_rows: torch.Tensor, drafts: SparseDrafts, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """`reject` for m items at once, on the device: (accepted, last token), both int64 (m,).

    `p`: (rows, vocabulary), normalised; item i owns rows first_rows[i] .. first_rows[i] + counts[i]. A drafted token that
    q does not hold is refused: no honest drafter sends one.
    """
    accepted = torch.zeros_like(drafts.counts)
    if drafts.longest:
        places = torch.arange(drafts.longest, device=p.device)
        rows = (first_rows[:, None] + places).clamp_(max=p.shape[0] - 1)
        uniforms = torch.rand(rows.shape, generator=generator, device=p.device)
        taken = (uniforms * drafts.own < p[rows, drafts.tokens]) & (drafts.own > 0) & (places < drafts.counts[:, None])
        accepted = taken.long().cumprod(-1).sum(-1)
    final = p[first_rows + accepted]
    if drafts.longest:
        refused = accepted < drafts.counts
        place = accepted.clamp(max=drafts.longest - 1)
        item = torch.arange(len(place), device=p.device)
        q = drafts.probabilities[item, place] * refused[:, None]
        residual = final.scatter_add(-1, drafts.ids[item, place], -q).clamp_(min=0.0)
        # p == q up to rounding leaves nothing to recover from; then p itself is the limit.
        final = torch.where(residual.sum(-1, keepdim=True) > 0, residual, final)
    return accepted, draw(final, generator)
