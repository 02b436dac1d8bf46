"""Estimates that are simply known."""

from scheduler.estimators import Acceptance, AcceptancePool


def known_acceptance(rate: float) -> Acceptance:
    """Of exactly `rate`, until something is reported: all of it comes from a pool that says so."""
    pool = AcceptancePool()
    pool.rate = rate
    return Acceptance(pool)
