"""What goes into a decision and what comes out of it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from scheduler.estimators import HIGHEST, Acceptance, AcceptancePool, Smoothed
from scheduler.identities import UNLIMITED, Identity
from scheduler.step_time import StepShape
from specfleet.core.types import BEST_EFFORT, LOCAL, Grant, Mode, ServiceClass

ESTIMATE_SHARE = 0.2
"""What a new observation of drafting speed or round trip counts."""
MOST_TOLD = 64
"""Verdicts on their way to a drafter and back."""
YIELD_SHARE = 0.1
"""What a new verdict counts in a session's tokens per verdict."""
ROUND, STREAM = Mode.ROUND, Mode.STREAM
"""For what is asked of every verdict: an enum's members are looked up through its metaclass, which takes ten times as long."""


@dataclass(slots=True)
class SessionRecord:
    """What the scheduler knows of one session. Counts only: no token, no tensor, no socket.

    One quantity drives it: tokens known minus tokens computed. More than one is prefill left; one is the token to decode
    from; drafted tokens come on top.
    """

    session: int
    known: int
    """Prompt and committed output, in tokens."""
    computed: int
    """How many of them the engine holds."""
    can_draft: bool
    opened_at: float
    ready_at: float
    """Since when it waits for a step: the order of first come, first served."""
    grant: Grant = LOCAL
    drafted: int = 0
    """Drafted tokens that wait to be verified."""
    chances: Sequence[float] = ()
    """Of the first of them, that each is right where those before it are, as its drafter says."""
    doubtful: int = 0
    """The last so many of them are too unlikely for what verifying them costs everybody."""
    alternatives: int = 0
    """Alternatives that wait beside them."""
    draft_complete: bool = False
    """The drafter will send no more before the next verdict."""
    told_at: float = 0.0
    """When its last verdict was handed out,"""
    told_before: float = 0.0
    """and the one before it; 0 where there was none."""
    drafts: bool = False
    """Its drafter has sent something."""
    told: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=MOST_TOLD))
    """Length of the text, and when it was told, for the verdicts of which its drafter has shown no sign yet; but for those
    that leave it in LOCAL, where it sends no draft that could show any."""
    draft_deadline: float = 0.0
    """In ROUND: when to stop waiting for the draft."""
    acceptance: Acceptance = field(default_factory=lambda: Acceptance(AcceptancePool()))
    """Chance that the next drafted token is accepted."""
    identity: Identity = field(default_factory=lambda: Identity("", UNLIMITED, 0.0))
    """Who it belongs to; shared by all sessions of that identity."""
    service: ServiceClass = BEST_EFFORT
    promised: bool = False
    """Its class promises something."""
    wish: Grant = LOCAL
    """What the speculation policy would grant it, where it keeps that, until it is asked again."""
    worth: float = 0.0
    """What the speculation policy says a token of it counts, where it weighs tokens."""
    first_at: float | None = None
    """When its first token was committed here."""
    emitted: int = 0
    """Tokens committed here."""
    due: float = math.inf
    """When its next token is due."""
    tokens_per_verdict: Smoothed = field(default_factory=lambda: Smoothed(YIELD_SHARE, 1.0))
    verified_per_verdict: Smoothed = field(default_factory=lambda: Smoothed(YIELD_SHARE, 1.0))
    """Tokens computed for a verdict: the one to decode from and the drafted ones."""
    draft_seconds: Smoothed = field(default_factory=lambda: Smoothed(ESTIMATE_SHARE))
    """Seconds that its drafter takes per token."""
    round_trip: Smoothed = field(default_factory=lambda: Smoothed(ESTIMATE_SHARE))
    """Seconds from a verdict to the drafter and back, drafting not counted."""
    decode: PlanItem = field(init=False)
    """Its share of a step that only decodes: the same each time."""

    def __post_init__(self) -> None:
        self.decode = PlanItem(self.session, 1, 0, True)
        self.promised = self.service.targets

    @property
    def interval(self) -> float:
        """Seconds between its last two verdicts, 0 before there were two."""
        return self.told_at - self.told_before if self.told_before else 0.0

    @property
    def behind(self) -> int:
        """Known tokens that are not computed yet; at least 1."""
        return self.known - self.computed

    @property
    def prefilling(self) -> bool:
        return self.known - self.computed > 1

    @property
    def waits(self) -> bool:
        """Whether it waits for its draft: only in ROUND, and only once it is prefilled."""
        if self.grant.mode is not ROUND or self.known - self.computed > 1:
            return False
        return self.drafted < self.grant.length and not self.draft_complete

    @property
    def offered(self) -> int:
        """Drafted tokens that its next step should verify."""
        return min(self.drafted - self.doubtful, self.grant.length)  # 0 in LOCAL

    def chance(self, place: int) -> float:
        """That the drafted token in this place is right where those before it are."""
        acceptance = self.acceptance
        if place >= len(self.chances):
            return acceptance.rate
        chance = self.chances[place] * acceptance.trust
        return chance if chance < HIGHEST else HIGHEST

    def waiting(self, drafted: int, alternatives: int, complete: bool, chances: Sequence[float], cost: float) -> None:
        """What waits to be verified from now on, when a token of a step costs everybody `cost` tokens of text. The first
        drafted one is never too unlikely: else nobody would see that it is right after all."""
        self.drafted, self.alternatives, self.draft_complete = drafted, alternatives, complete
        self.chances, self.doubtful = chances, 0
        if chances:
            survival, trust = 1.0, self.acceptance.trust
            for place, chance in enumerate(chances):
                survival *= chance * trust
                if survival < cost and place:
                    self.doubtful = drafted - place
                    break

    @property
    def weight(self) -> float:
        """What its tokens count against others'."""
        return self.identity.share.weight * self.service.weight

    def heard(self, confirmed: int) -> float | None:
        """Its drafter knows of `confirmed` tokens: when it was told the newest of them, if that is news."""
        told, at = self.told, None
        while told and told[0][0] <= confirmed:
            at = told.popleft()[1]
        return at

    def schedule(self) -> None:
        """Work out when the next token is due. To be called where the class promises anything."""
        self.due = self.service.due(self.opened_at, self.first_at, self.emitted)


class PlanItem(NamedTuple):
    """A session's share of a step: `feed` known tokens, then `draft` guesses and `alternatives` to them. `sample` ends in a
    verdict."""

    session: int
    feed: int
    draft: int
    sample: bool
    alternatives: int = 0

    @property
    def tokens(self) -> int:
        return self.feed + self.draft + self.alternatives


@dataclass(frozen=True, slots=True)
class Plan:
    items: tuple[PlanItem, ...] = ()
    preempt: tuple[int, ...] = ()
    """Sessions that must give their pages back; they are computed again later."""
    seconds: float = 0.0
    """Predicted duration of the step."""
    plain_seconds: float = 0.0
    """And of the same step without drafts."""
    shape: StepShape | None = None
    """What its duration depends on."""
    wake_at: float | None = None
    """With no items: when to ask again although nothing has happened."""


class ItemOutcome(NamedTuple):
    """What a step did for one planned item: of `drafted` verified tokens `accepted`, `committed` new tokens in all."""

    session: int
    fed: int
    drafted: int
    accepted: int
    committed: int
    pending: int
    """Drafted tokens that still continue the text and wait for the next step."""
    alternatives: int = 0
    """Verified beside the draft."""
    alternatives_pending: int = 0
    complete: bool = False
    """What waits is a whole draft."""
    chances: Sequence[float] = ()
    """Of each drafted token that waits (`SessionRecord.chances`)."""

    @property
    def tokens(self) -> int:
        return self.fed + self.drafted + self.alternatives


@dataclass(frozen=True, slots=True)
class Outcome:
    items: tuple[ItemOutcome, ...]
    seconds: float
    shape: StepShape | None = None
    """Of the plan, where all of it was done; else it is asked of the records."""
