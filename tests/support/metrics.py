"""Figures for metrics to show."""

from __future__ import annotations


class Counts:
    """Gauges of a verifier that is doing something."""

    def sessions(self) -> dict[str, int]:
        return {"prefill": 1, "generate": 2}

    def queue(self) -> dict[str, int]:
        return {"prefill": 1}

    def kv_pages(self) -> dict[str, int]:
        return {"used": 3, "cached": 4, "free": 5}

    def evictions(self) -> dict[str, int]:
        return {"preempted": 6, "cache": 7}

    def price(self) -> float:
        return 12.5

    def fairness(self) -> float:
        return 0.75

    def prefix_cache(self) -> tuple[int, int]:
        return 100, 40
