"""Who is served: shares, quotas and goodput belong to an identity, not to a stream, so that more streams buy nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.estimators import Goodput
from specfleet.core.errors import ConfigurationError

MAX_IDLE = 1024
"""Identities without a session that are remembered; of more, those that are long idle are let go of."""


@dataclass(frozen=True, slots=True)
class Share:
    """What an identity may have. None: no limit."""

    weight: float = 1.0
    """Relative to other identities: twice the weight, twice the goodput where it is contended."""
    sessions: int | None = None
    """Open at a time."""
    tokens_per_minute: float | None = None
    """Committed tokens; up to a minute's worth may come at once."""

    def __post_init__(self) -> None:
        for name in ("weight", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise ConfigurationError(f"share: {name} is {value:g}, must be a number above 0")
        if self.sessions is not None and self.sessions < 1:
            raise ConfigurationError(f"share: sessions is {self.sessions}, must be at least 1")


UNLIMITED = Share()


class Identity:
    """One of those who are served, and what it got."""

    __slots__ = ("_filled_at", "_tokens", "goodput", "name", "sessions", "share")

    def __init__(self, name: str, share: Share, now: float) -> None:
        self.name = name
        self.share = share
        self.sessions = 0
        """Open now."""
        self.goodput = Goodput(now)
        """Tokens per second of all its sessions together, while it has any."""
        self._tokens = share.tokens_per_minute or 0.0
        """Left of the quota. May fall below zero: what was admitted is served to its end."""
        self._filled_at = now

    def committed(self, tokens: int, now: float) -> None:
        self.goodput.observe(tokens, now)
        if self.share.tokens_per_minute is not None:
            self._refill(now)
            self._tokens -= tokens

    def quota_wait(self, now: float) -> float:
        """Seconds until its token quota allows another session."""
        if self.share.tokens_per_minute is None:
            return 0.0
        self._refill(now)
        return max(0.0, -self._tokens / self.share.tokens_per_minute * 60.0)

    def _refill(self, now: float) -> None:
        quota = self.share.tokens_per_minute or 0.0
        self._tokens = min(quota, self._tokens + quota / 60.0 * max(0.0, now - self._filled_at))
        self._filled_at = now


class Identities:
    """Known by name. Those with sessions are always kept; the rest for a while, so that leaving and coming back earns
    nothing."""

    def __init__(self, shares: Mapping[str, Share]) -> None:
        self._shares = dict(shares)
        self._known: dict[str, Identity] = {}

    def get(self, name: str, now: float) -> Identity:
        found = self._known.get(name)
        if found is None:
            if len(self._known) >= MAX_IDLE:
                self._known = {n: one for n, one in self._known.items() if one.sessions or not one.goodput.idle(now)}
            found = self._known[name] = Identity(name, self._shares.get(name, UNLIMITED), now)
        return found

    def opened(self, name: str, now: float) -> Identity:
        """`name` has one more session."""
        identity = self.get(name, now)
        if not identity.sessions:
            identity.goodput.resume(now)
        identity.sessions += 1
        return identity

    def closed(self, identity: Identity) -> None:
        identity.sessions -= 1

    def active(self) -> list[Identity]:
        """Those with sessions."""
        return [one for one in self._known.values() if one.sessions]


def jain(values: list[float]) -> float:
    """Jain's fairness index, (sum x)^2 / (n sum x^2): 1 where all are equal, 1/n where one has everything."""
    square = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * square) if square else 1.0
