"""From the logits of a step to its results: which drafts are accepted, which tokens follow. All items at once, on the
device; only ids, and log-probabilities where asked for, come back to the host."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import eq
from typing import NamedTuple

import numpy as np
import torch

from specfleet.core.errors import InternalError
from specfleet.core.records import made
from specfleet.core.step import Confidence, DraftDistribution, StepItem, StepResult
from specfleet.core.trace import Phase, Tracer
from specfleet.core.types import DRAFT_SUPPORT_LIMIT, TopLogprobs
from specfleet.engine import confidence, race
from specfleet.engine.acceptance import SparseDrafts, match, match_tree, reject_batch
from specfleet.engine.confidence import LIKELIEST, confidences
from specfleet.engine.noise import gumbel, noise_keys
from specfleet.engine.race import NOBODY, SeededRows, seeded_argmax
from specfleet.engine.sampling import Truncation, argmax, draw, process, top_support

Outcome = tuple[int, list[int], int | None]
"""Accepted of the draft, committed tokens, which alternative was accepted."""


class Choice(NamedTuple):
    """One sampling item of a step and where its rows are."""

    item: StepItem
    first_row: int
    position: int
    """Absolute position of the token that the first row chooses."""

    @property
    def size(self) -> int:
        """Its rows: of the draft, and then one behind each alternative."""
        return self.item.draft + 1 + len(self.item.alternatives)

    @property
    def rows(self) -> range:
        return range(self.first_row, self.first_row + self.size)

    @property
    def positions(self) -> list[int]:
        """Absolute position of the token that each row chooses."""
        plain = range(self.position, self.position + self.item.draft + 1)
        return [*plain, *(self.position + one.offset + 1 for one in self.item.alternatives)]

    @property
    def draft(self) -> Sequence[int]:
        return self.item.tokens[len(self.item.tokens) - self.item.draft :]


class Chooser:
    """Applies both rules of acceptance. The generator serves the unseeded rule only."""

    def __init__(self, device: torch.device, seed: int | None, tracer: Tracer | None = None) -> None:
        self.device = device
        self._tracer = tracer
        self.generator = torch.Generator(device)
        self.generator.seed() if seed is None else self.generator.manual_seed(seed)
        race.prepare(device)
        confidence.prepare(device)

    def choose(self, choices: Sequence[Choice], logits: torch.Tensor) -> list[StepResult]:
        """One result for each choice. `logits`: float32 (rows, vocabulary), each choice owning its `rows`. Raises
        InternalError naming the sequences whose logits are not finite."""
        distributions: dict[int, DraftDistribution] = {}
        rejected: list[tuple[list[Choice], torch.Tensor, torch.Tensor]] = []
        seeded, others = _by_kind(choices)
        targets, best, runners_up = self._targets(seeded, logits)
        for kind, truncation, members in others:
            if kind == "support":
                distributions |= self._from_support(members, truncation, logits, targets)
            elif kind == "reject":
                rejected.append((members, *self._reject(members, truncation, logits)))
        largest = best.tolist()
        finite = [math.isfinite(value) for value in largest]  # the largest is NaN if any is
        if not all(finite):
            bad = [str(c.item.sequence) for c in choices if not all(finite[row] for row in c.rows)]
            raise InternalError(f"the model's logits are not finite for sequences {', '.join(bad)}")
        tokens = targets.tolist()
        if self._tracer is not None:
            self._tracer.mark(Phase.SAMPLING)
        outcomes = {choice.first_row: _outcome(choice, tokens) for choice in choices}
        for members, accepted, last in rejected:
            for choice, count, token in zip(members, accepted.tolist(), last.tolist(), strict=True):
                outcomes[choice.first_row] = count, [*choice.draft[:count], token], None
        logprobs, top = self._logprobs(choices, outcomes, logits)
        sure = self._confidences(choices, logits, largest, tokens, runners_up)
        results = []
        for choice, (accepted, committed, alternative) in zip(choices, outcomes.values(), strict=True):
            row = choice.first_row
            matches = sum(map(eq, tokens[row:], choice.draft)) if choice.item.score else 0
            told = (
                logprobs.get(row),
                distributions.get(row),
                matches,
                sure.get(row),
                alternative is not None,
                top.get(row),
            )
            results.append(made(StepResult, (accepted, tuple(committed), *told)))
        return results

    @staticmethod
    def _targets(
        seeded: list[Choice], logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[int, int | None]]:
        """The token of each row, argmax_v(log p_t(v) + G(seed, t, v)) in those of `seeded` and the likeliest in others; the
        largest logit of each row, NaN if one is; and which token would have come without the seeded one, by row, where asked
        for: None where only one can."""
        own, asked = SeededRows(), False
        for choice in seeded:
            sampling, count = choice.item.sampling, choice.size
            own.rows += choice.rows
            own.truncations += [Truncation.of(sampling)] * count
            own.seeds += [sampling.seed or 0] * count
            own.positions += choice.positions
            asked = asked or choice.item.want_runner_up
        if len(own.rows) == len(logits):  # all of them, in their order: nobody asks for the likeliest
            targets, second, best = seeded_argmax(logits, own, asked)
        else:
            targets = argmax(logits)
            best = logits.gather(-1, targets[:, None])[:, 0]
            if seeded:
                targets[own.rows], second, _ = seeded_argmax(logits, own, asked)
        if not asked:
            return targets, best, {}
        found = [None if token == NOBODY else token for token in second.tolist()]
        return targets, best, dict(zip(own.rows, found, strict=True))

    def _reject(
        self, members: list[Choice], truncation: Truncation, logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rejection rule: (accepted, last token) of each member."""
        p = process(logits[self._rows(members)], truncation).softmax(-1)
        counts = torch.tensor([c.item.draft + 1 for c in members], device=self.device)
        first = counts.cumsum(0) - counts
        drafts = SparseDrafts([c.draft for c in members], [c.item.q or () for c in members], self.device)
        return reject_batch(p, first, drafts, self.generator)

    def _from_support(
        self, members: list[Choice], truncation: Truncation, logits: torch.Tensor, out: torch.Tensor
    ) -> dict[int, DraftDistribution]:
        """Truncate to the likeliest tokens, choose from exactly that into `out`, and return it by first row."""
        rows = self._rows(members)
        if truncation.temperature == 0.0:
            return {c.first_row: DraftDistribution((int(out[c.first_row]),), (1.0,)) for c in members}
        ids, logs = top_support(process(logits[rows], truncation), DRAFT_SUPPORT_LIMIT)
        places = draw(logs.exp(), self.generator)
        seeded = [i for i, c in enumerate(members) if c.item.sampling.seed is not None]
        if seeded:
            own = [members[i] for i in seeded]  # of one row each: who is asked for q has no draft
            keys = noise_keys([c.item.sampling.seed or 0 for c in own], [c.position for c in own], self.device)
            places[seeded] = (logs[seeded] + gumbel(keys, ids[seeded])).argmax(-1)
        out[rows] = ids.gather(-1, places[:, None])[:, 0]
        found = {}
        for choice, row, probabilities in zip(members, ids.tolist(), logs.exp().tolist(), strict=True):
            support = sum(p > 0.0 for p in probabilities)  # sorted: what was cut off comes last
            found[choice.first_row] = DraftDistribution(tuple(row[:support]), tuple(probabilities[:support]))
        return found

    def _logprobs(
        self, choices: Sequence[Choice], outcomes: dict[int, Outcome], logits: torch.Tensor
    ) -> tuple[dict[int, tuple[float, ...]], dict[int, tuple[TopLogprobs, ...]]]:
        """The model's log-probability of each committed token, before temperature and truncation, and those of the likeliest
        in its place, by first row, where asked for."""
        wanted = [c for c in choices if c.item.sampling.logprobs]
        if not wanted:
            return {}, {}
        tokens = [token for c in wanted for token in outcomes[c.first_row][1]]
        rows = [row for c in wanted for row in _rows_of(c, outcomes[c.first_row])]
        chosen = logits[rows]
        total = chosen.logsumexp(-1, keepdim=True)
        logs = chosen.gather(-1, torch.tensor(tokens, device=self.device)[:, None]) - total
        own = iter(logs[:, 0].tolist())
        found = {c.first_row: tuple(next(own) for _ in outcomes[c.first_row][1]) for c in wanted}
        most = min(max(c.item.sampling.top_logprobs for c in wanted), chosen.shape[-1])
        if not most:
            return found, {}
        best, ids = chosen.topk(most)
        places = zip(ids.tolist(), (best - total).tolist(), strict=True)
        top = {}
        for c in wanted:
            count = c.item.sampling.top_logprobs
            likeliest = tuple(tuple(zip(*next(places), strict=True))[:count] for _ in outcomes[c.first_row][1])
            if count:
                top[c.first_row] = likeliest
        return found, top

    @staticmethod
    def _confidences(
        choices: Sequence[Choice],
        logits: torch.Tensor,
        best: Sequence[float],
        tokens: Sequence[int],
        runners_up: dict[int, int | None],
    ) -> dict[int, Confidence]:
        """How sure the model is of each token that an item without a draft adds, by its row, where asked for. `runners_up` of
        seeded items; of a greedy one it is the second likeliest."""
        asked = [c for c in choices if c.item.want_confidence]
        if not asked:
            return {}
        rows = [c.first_row for c in asked]
        wanted = logits if len(rows) == len(logits) else logits[rows]
        seconds = [runners_up.get(c.first_row, LIKELIEST) if c.item.want_runner_up else None for c in asked]
        return dict(
            zip(rows, confidences(wanted, [best[n] for n in rows], [tokens[n] for n in rows], seconds), strict=True)
        )

    def _rows(self, members: Iterable[Choice]) -> torch.Tensor:
        rows = np.array([row for choice in members for row in choice.rows])  # torch takes a list number by number
        return torch.from_numpy(rows).to(self.device)


def _outcome(choice: Choice, tokens: Sequence[int]) -> Outcome:
    """By the match rule; `tokens`: of all rows of the step."""
    row, item = choice.first_row, choice.item
    if not item.draft:
        return 0, [tokens[row]], None
    if item.score:  # a text that is scored is kept, whatever this model thinks of it
        return item.draft, [tokens[row + item.draft]], None
    own = tokens[row : row + choice.size]
    return match_tree(own, choice.draft, item.alternatives) if item.alternatives else (*match(own, choice.draft), None)


def _rows_of(choice: Choice, outcome: Outcome) -> list[int]:
    """The row that chose each committed token."""
    _, tokens, alternative = outcome
    rows = list(choice.rows[: len(tokens)])
    if alternative is not None:
        rows[-1] = choice.rows[choice.item.draft + 1 + alternative]
    return rows


def _by_kind(choices: Sequence[Choice]) -> tuple[list[Choice], list[tuple[str, Truncation, list[Choice]]]]:
    """The items that need more than an argmax: those with a seed; of the others those of one rule and one set of parameters
    together."""
    seeded: list[Choice] = []
    groups: dict[tuple[str, Truncation], list[Choice]] = {}
    for choice in choices:
        sampling = choice.item.sampling
        if choice.item.want_q:
            kind = "support"
        elif sampling.greedy:
            continue
        elif sampling.seed is not None:
            seeded.append(choice)
            continue
        else:
            kind = "reject"
        groups.setdefault((kind, Truncation.of(sampling)), []).append(choice)
    return seeded, [(kind, truncation, members) for (kind, truncation), members in groups.items()]
