"""What the scheduler believes about a session, learnt from what happened to it.

Acceptance is a ratio of discounted sums, accepted over *tested*: a draft is tested up to its first refusal, so a round of S
drafted and J accepted tokens tests J + (J < S). An average of J / S would be biased by that censoring, which costs 8 to 13 %
of throughput (algorithms.md, section 9).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

PRIOR = 0.7
"""Acceptance before anybody has drafted anything."""
LOWEST, HIGHEST = 0.05, 0.97
"""Acceptance is never believed to be beyond these: a few lucky or unlucky rounds prove nothing."""
SHRINKAGE = 8.0
"""A session's own record counts as much as the pool's once so many of its tokens were tested."""
HALF_LIFE = 64.0
"""Tested tokens after which an observation counts half."""
POOL_HALF_LIFE = 4096.0
FADING = 512.0
"""Tokens without a guess after which an observation counts half."""
OUTLIER = 8.0
"""An observation of what is smoothed counts as at most this many times the present value, either way."""
INFINITY = math.inf


class AcceptancePool:
    """What holds for all sessions together: where a new session starts, and what a short record is drawn towards."""

    def __init__(self) -> None:
        self._accepted, self._tested = PRIOR * SHRINKAGE, SHRINKAGE
        self.rate = PRIOR

    def observe(self, accepted: int, tested: int) -> None:
        keep = math.pow(2.0, -tested / POOL_HALF_LIFE)
        self._accepted = keep * self._accepted + accepted
        self._tested = keep * self._tested + tested
        self.rate = self._accepted / self._tested


class Acceptance:
    """The chance that a session's next drafted token is accepted, given that those before it were."""

    __slots__ = ("_accepted", "_claimed", "_pool", "_tested", "unguessed")

    def __init__(self, pool: AcceptancePool) -> None:
        self._pool = pool
        self._accepted = self._tested = self._claimed = 0.0
        self.unguessed = 0
        """Tokens that went by without a guess since the last one: with them, what is known of the session fades into what is
        known of all, so that whoever was hopeless once is tried again."""

    @property
    def rate(self) -> float:
        """Shrunk to the pool, within [LOWEST, HIGHEST]."""
        kept = math.pow(2.0, -self.unguessed / FADING) if self.unguessed else 1.0  # `_kept`: asked for every draft
        rate = (kept * self._accepted + SHRINKAGE * self._pool.rate) / (kept * self._tested + SHRINKAGE)
        return LOWEST if rate < LOWEST else HIGHEST if rate > HIGHEST else rate

    @property
    def _kept(self) -> float:
        """Share of what is known of the session that has not faded."""
        return math.pow(2.0, -self.unguessed / FADING) if self.unguessed else 1.0

    @property
    def trust(self) -> float:
        """What a chance that its drafter tells is to be multiplied with: right tokens over what it said there would be. So
        nobody has a larger share of a step for saying more than holds."""
        return (self._accepted + SHRINKAGE) / (self._claimed + SHRINKAGE)

    def verified(self, drafted: int, accepted: int, chances: Sequence[float] = ()) -> None:
        """A round: of `drafted` verified tokens the first `accepted` were right, where their drafter had told these `chances`
        of them, if it tells any. No drafted token, no observation."""
        tested = accepted + (accepted < drafted)
        if tested:
            self.reported(accepted, tested)
            if chances:
                said = chances[:tested]
                self._claimed += sum(said) - min(accepted, len(said))
            self._pool.observe(accepted, tested)

    def reported(self, accepted: int, tested: int) -> None:
        """`accepted` of `tested` guesses were right, as a drafter says of its shadow guesses in LOCAL. Nobody has verified
        that, so it is believed of this session only: others must not be moved by what one drafter says."""
        if 0 <= accepted <= tested and tested > 0:
            before, keep = self._kept, math.pow(2.0, -tested / HALF_LIFE)
            self.unguessed = 0
            self._accepted = keep * (self._accepted * before) + accepted
            self._tested = keep * (self._tested * before) + tested
            self._claimed = keep * (self._claimed * before) + accepted


def expected_tokens(acceptance: float, length: int) -> float:
    """Tokens that a round of `length` drafted ones commits on average: mu(k) = (1 - a^(k+1)) / (1 - a), the recovered or
    bonus token included (Leviathan et al. 2023, equation 1)."""
    return (1.0 - acceptance ** (length + 1)) / (1.0 - acceptance)


class Smoothed:
    """Exponential average of a positive quantity that ignores what cannot be and damps what hardly can."""

    __slots__ = ("_share", "value")

    def __init__(self, share: float, value: float = 0.0) -> None:
        """`share` of each new observation; `value` 0 means not known yet."""
        self._share = share
        self.value = value

    def at_most(self, value: float) -> None:
        """It cannot be more than that."""
        if not self.value or value < self.value:
            self.observe(value)

    def observe(self, value: float) -> None:
        if not 0.0 < value < INFINITY:
            return
        known = self.value
        if known == 0.0:
            self.value = value
            return
        if value > known * OUTLIER:
            value = known * OUTLIER
        elif value < known / OUTLIER:
            value = known / OUTLIER
        self.value = known + self._share * (value - known)


class Goodput:
    """Tokens per second, forgetting with a time constant; in seconds and not in rounds, since rounds differ in length. Of who
    is new it is the plain mean: the first step may be anything."""

    __slots__ = ("_at", "_known", "_seconds", "_tokens", "_waiting", "value")

    def __init__(self, now: float, seconds: float = 10.0) -> None:
        self.value = 0.0
        self._seconds = seconds
        self._at = now
        self._known = 0.0
        """Share of the discounted past that was observed."""
        self._tokens = 0
        self._waiting = True
        """For a first token: how long that takes is a matter of the prompt."""

    def observe(self, tokens: int, now: float) -> None:
        """`tokens` were committed since the last observation (several sessions of one identity may say so at one moment).
        The first interval sets the rate: starting from zero would make whoever is new look starved."""
        if self._waiting:
            self._waiting, self._at = False, now
            return
        self._tokens += tokens
        passed = now - self._at
        if passed <= 0.0:
            return
        rate = self._tokens / passed
        new = -math.expm1(-passed / self._seconds)
        self._known += new * (1.0 - self._known)
        self.value += new / self._known * (rate - self.value)
        self._at, self._tokens = now, 0

    def at(self, now: float) -> float:
        """The rate if nothing comes until `now`: whoever waits looks poorer and poorer."""
        return self.value * math.exp((self._at - now) / self._seconds) if now > self._at else self.value

    def resume(self, now: float) -> None:
        """The time up to now does not count, nor that to the next token: nothing was asked for."""
        self._at, self._tokens, self._waiting = max(self._at, now), 0, True

    def idle(self, now: float) -> bool:
        """Nothing for long enough that what it knows is worth nothing."""
        return now - self._at > 6.0 * self._seconds
