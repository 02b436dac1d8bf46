"""Workers of several ranks in step: rank 0 says what to do, the others do it too, and nobody reads their logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from specfleet.engine.batch import Span
from specfleet.engine.parallel import Ranks
from specfleet.engine.worker import Worker

_STOP = "stop"


class Leader:
    """Rank 0's worker: what it does, the others do."""

    def __init__(self, worker: Worker, ranks: Ranks) -> None:
        self._worker, self._ranks = worker, ranks
        self.model, self.pages, self.graphs = worker.model, worker.pages, worker.graphs

    @property
    def forward_seconds(self) -> float:
        return self._worker.forward_seconds

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        if pairs:
            self._ranks.tell(("copy", pairs))
            self._worker.copy(pairs)

    def move(self, pairs: Sequence[tuple[int, int]]) -> None:
        if pairs:
            self._ranks.tell(("move", pairs))
            self._worker.move(pairs)

    def run(self, spans: Sequence[Span], built: Callable[[], None] = lambda: None) -> torch.Tensor:
        self._ranks.tell(("run", spans))
        return self._worker.run(spans, built)

    def shutdown(self) -> None:
        """Let the others go."""
        self._ranks.tell((_STOP, None))


def follow(worker: Worker, ranks: Ranks) -> None:
    """Do what rank 0 does until it says that it is over. Raises RuntimeError if it is gone."""
    while True:
        name, given = ranks.tell(None)
        if name == _STOP:
            return
        getattr(worker, name)(given)
