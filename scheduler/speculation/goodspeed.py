"""`goodspeed`, or `goodspeed:C`: C drafted tokens a round, shared out by the gradient of sum log goodput (arXiv 2512.09963).

    S = argmax sum_i (1 / X_i) * (1 - a_i^(S_i + 1)) / (1 - a_i)   with sum S_i <= C

a_i and X_i (tokens per *round*) are exponential averages with the paper's beta = 0.5 for X; its eta for a is not published.
The gain of the j-th token of i is a_i^j / X_i, which falls with j: giving tokens one by one to the largest gain is exact.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scheduler.estimators import HIGHEST, LOWEST, PRIOR
from scheduler.speculation.policy import LONGEST, OneByOne, length_of
from scheduler.types import ItemOutcome, Outcome, SessionRecord
from scheduler.view import View
from specfleet.core.types import LOCAL, Grant, Mode

DEFAULT_BUDGET = 20
LARGEST_BUDGET = 100_000
ETA = 0.1
BETA = 0.5


@dataclass(slots=True)
class Client:
    acceptance: float = PRIOR
    goodput: float = 1.0
    """Tokens per round."""


def share_out(budget: int, clients: Mapping[int, tuple[float, float]], longest: int = LONGEST) -> dict[int, int]:
    """Speculation lengths by client, from (weight, acceptance): those that maximise sum weight * mu(length)."""
    lengths = dict.fromkeys(clients, 0)
    heap = [(-weight * rate, client) for client, (weight, rate) in clients.items()]
    heapq.heapify(heap)
    for _ in range(budget):
        if not heap:
            break
        gain, client = heap[0]
        lengths[client] += 1
        if lengths[client] == longest:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (gain * clients[client][1], client))
    return lengths


class GoodSpeed(OneByOne):
    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._clients: dict[int, Client] = {}
        self._lengths: dict[int, int] = {}

    def opened(self, record: SessionRecord, now: float) -> Grant:
        self._clients[record.session] = Client()
        self._share()
        return self._grant(record.session)

    def stepped(self, outcome: Outcome, now: float, worth: float | None = None) -> None:
        for item in outcome.items:
            client = self._clients.get(item.session)
            if client is None or not item.committed:
                continue
            if item.drafted:
                tested = item.accepted + (item.accepted < item.drafted)
                client.acceptance += ETA * (item.accepted / tested - client.acceptance)
            client.goodput += BETA * (item.accepted + 1 - client.goodput)
        self._share()

    def decided(self, record: SessionRecord, outcome: ItemOutcome, now: float) -> Grant:
        return self._grant(record.session)

    def closed(self, record: SessionRecord) -> None:
        self._clients.pop(record.session, None)
        self._lengths.pop(record.session, None)

    def _share(self) -> None:
        clients = {
            session: (1.0 / client.goodput, min(HIGHEST, max(LOWEST, client.acceptance)))
            for session, client in self._clients.items()
        }
        self._lengths = share_out(self._budget, clients)

    def _grant(self, session: int) -> Grant:
        # The paper leaves a length of 0 undefined; a client without a share decodes target-only for that round.
        length = self._lengths.get(session, 0)
        return Grant(Mode.ROUND, length) if length else LOCAL


def build(argument: str, view: View, rng: np.random.Generator) -> GoodSpeed:
    return GoodSpeed(length_of("goodspeed", argument, DEFAULT_BUDGET, LARGEST_BUDGET))
