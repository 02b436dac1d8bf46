"""One engine step, as values: what goes in, what comes out. The engine, and its model in the simulator, speak these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from specfleet.core.types import SamplingParams, TopLogprobs

PAGE_SIZE = 16
"""Tokens in a KV page."""


@dataclass(frozen=True, slots=True)
class DraftDistribution:
    """The truncated, renormalised distribution q that one drafted token was sampled from (k <= 64 entries)."""

    token_ids: tuple[int, ...]
    probabilities: tuple[float, ...]


class Alternative(NamedTuple):
    """Another token for one place of a draft: a token tree whose side branches are one token long."""

    offset: int
    """Index of the drafted token whose place it would take."""
    token: int


class Confidence(NamedTuple):
    """How sure a draft model was of a token, from its own distribution q before temperature and truncation."""

    chosen: float
    """q of the token."""
    entropy: float
    """-sum q log q, in nats."""
    margin: float
    """q of the likeliest token less that of the second."""
    spread: float
    """-log sum q^2, in nats: the logarithm of how many tokens it hesitates between, the unlikely ones hardly counted (Rényi's
    entropy of order 2)."""
    runner_up: int | None = None
    """The token that it would have chosen without that one, where asked for and where there is any."""
    runner_up_share: float = 0.0
    """q of the runner-up as a share of all but the chosen token."""


class StepItem(NamedTuple):
    """One sequence's share of a step.

    `tokens` follow what the sequence has computed. The last `draft` of them are guesses to be verified: the step commits
    the longest accepted prefix plus one token of the target's own, and forgets the rest. With `sample=False` the tokens
    are only computed (a prefill chunk that is not the last); `draft` is then 0.
    """

    sequence: int
    tokens: Sequence[int]
    sampling: SamplingParams
    draft: int = 0
    sample: bool = True
    q: Sequence[DraftDistribution] | None = None
    """One per drafted token; needed by the rejection rule, ignored by the match rule."""
    score: bool = False
    """`draft` is text that somebody else wrote: count the places where this model would have chosen the same, and keep all of
    it. Match rule only."""
    want_q: bool = False
    """Return the distribution that the sampled token came from (a drafter of unseeded text asks for it)."""
    want_confidence: bool = False
    """Return how sure the model is of the token that it adds."""
    want_runner_up: bool = False
    """And which one it would have chosen next. Match rule only."""
    alternatives: Sequence[Alternative] = ()
    """Second guesses for places of the draft, computed beside it; none of a token that is there already. Match rule only."""


class StepResult(NamedTuple):
    """What a step did for one item.

    `tokens`: the accepted prefix of the draft and then one more, so `accepted + 1` of them (none with `sample=False`).
    `alternative`: one was right where the draft was first refused; it stands behind the prefix, before that one more.
    `matches`: where `score` asked for it; `tokens` is then the one that would follow.
    `logprobs`: the model's log-probability of each, where asked for. `top_logprobs`: those of the likeliest in its place.
    `q`: where `want_q` asked for it. `confidence`: where `want_confidence` asked for it.
    """

    accepted: int = 0
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = None
    q: DraftDistribution | None = None
    matches: int = 0
    confidence: Confidence | None = None
    alternative: bool = False
    top_logprobs: tuple[TopLogprobs, ...] | None = None


Stop = Callable[[StepResult], bool]
"""Told of each drafted token, in order; True once no more are wanted. Called in the engine's thread, which waits for it."""


class Engine(Protocol):
    """What the batch loop needs of an engine.

    `step` may take long and is awaited; everything else is quick, and is called between steps only.
    """

    @property
    def page_size(self) -> int: ...

    @property
    def total_pages(self) -> int: ...

    @property
    def free_pages(self) -> int:
        """Pages that can be had now, those of the prefix cache that nobody uses included."""
        ...

    def open(self, sequence: int, tokens: Sequence[int]) -> int:
        """Begin a sequence that will hold `tokens` first; returns how many of them the prefix cache already computed
        (always fewer than len(tokens)). The rest is fed by steps."""
        ...

    def truncate(self, sequence: int, length: int) -> None:
        """Forget what was computed from position `length` on."""
        ...

    def close(self, sequence: int) -> None:
        """Give a sequence's pages back; full pages stay in the prefix cache until someone needs the room."""
        ...

    async def step(self, items: Sequence[StepItem]) -> list[StepResult]:
        """Run one ragged batch; results in the order of `items`. Raises before computing anything when the pages do not
        suffice: ask first with `free_pages`."""
        ...


class DraftEngine(Engine, Protocol):
    """What the draft batcher needs beyond that."""

    async def extend(
        self, items: Sequence[StepItem], count: int, stops: Sequence[Stop | None] = ()
    ) -> list[list[StepResult]]:
        """`count` steps in a row, each feeding every item's newest token back: how a draft model writes. All items sample
        and have no draft. `stops`, one per item where given, take single items out sooner. Results by item, then by step.
        """
        ...
