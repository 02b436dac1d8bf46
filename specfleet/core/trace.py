"""Where a round's time goes: what a daemon that was told to trace notes of itself.

A round of a drafting session, from one verdict to the next as its drafter sees it, is cut into phases:

    drafter    drafting, serialization                                                                  serialization
    network                           network                                                   network
    verifier         serialization, queue, plan, build, forward, sampling, acceptance, reply, serialization

The verifier's phases from plan to reply are those of a step, cut without a rest: each mark ends the phase before it. Whoever
is in the step waits for all of it, so a round is charged with the whole of each. Nobody measures the network: it is what is
left of a drafter's wait (`specfleet.bench.breakdown`), gRPC's framing and the event loops' wake-ups included.

Where nobody traces there is no tracer, and the cost is a comparison with None.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import StrEnum
from itertools import count
from typing import NamedTuple, TypeVar

from specfleet.core.clock import Clock

KEPT = 50_000
"""Newest spans kept for a Chrome trace; totals are of all."""

A = TypeVar("A")
B = TypeVar("B")


class Phase(StrEnum):
    """The parts of a round. WAITING is the drafter's view of all that is not its own."""

    DRAFTING = "drafting"
    """From the verdict to the moment its answer is ready, waiting for other users of the draft model included."""
    SERIALIZATION = "serialization"
    """Our messages to and from protobuf's."""
    NETWORK = "network"
    QUEUE = "queue"
    """Ready, while the step before is still running."""
    PLAN = "plan"
    BUILD = "build"
    """The batch: what goes in, the way to the engine's thread, pages, index tensors."""
    FORWARD = "forward"
    SAMPLING = "sampling"
    """From logits to the target's own tokens, on the host."""
    ACCEPTANCE = "acceptance"
    REPLY = "reply"
    """The way back from the engine's thread, commit, next grants, verdicts until they are handed to the wire."""
    WAITING = "waiting"


class Span(NamedTuple):
    """`seconds` from `start` on the tracer's clock. What shares a `lane` does not overlap."""

    name: str
    start: float
    seconds: float
    lane: str
    about: dict[str, int] | None = None


class Tracer:
    """One daemon's. Called from its event loop, and from the engine's thread while the loop waits for that; `spans` and totals
    may be read from any thread."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seconds = dict.fromkeys(Phase, 0.0)
        """Time this daemon spent, by phase: a step's once, however many sessions were in it."""
        self.counts = dict.fromkeys(Phase, 0)
        self.round_seconds = dict.fromkeys(Phase, 0.0)
        """Time that rounds waited, summed over them."""
        self.rounds = 0
        """Verdicts in mode ROUND that verified a draft."""
        self._spans: deque[Span] = deque(maxlen=KEPT)
        self._lanes = count(1)
        self.started_at = 0.0
        """When the step that runs now, or the last one, began."""
        self._last = 0.0
        self._marks: dict[Phase, float] = {}

    def spans(self) -> list[Span]:
        return list(self._spans.copy())  # one operation of the interpreter: nobody appends meanwhile

    def lane(self, what: str) -> str:
        """A name for something whose spans do not overlap."""
        return f"{what} {next(self._lanes)}"

    def add(self, phase: Phase, start: float, end: float, lane: str, about: dict[str, int] | None = None) -> None:
        """This daemon was at `phase` from `start` to `end`."""
        self.seconds[phase] += end - start
        self.counts[phase] += 1
        self._spans.append(Span(phase, start, end - start, lane, about))

    def round(self, phase: Phase, start: float, end: float, lane: str) -> None:
        """A round was at `phase` from `start` to `end`."""
        self.round_seconds[phase] += end - start
        self._spans.append(Span(phase, start, end - start, lane))

    def timed(self, phase: Phase, call: Callable[[A], B], argument: A) -> B:
        """`call(argument)`, counted as `phase`."""
        start = self.clock()
        try:
            return call(argument)
        finally:
            self.add(phase, start, self.clock(), phase)

    # A step --------------------------------------------------------------------------------------------------------

    def start(self, at: float) -> None:
        """A step begins; the first mark ends what began then."""
        self.started_at = self._last = at
        self._marks.clear()

    def mark(self, phase: Phase) -> None:
        """Since the last mark it was `phase`. A phase may be marked several times (a step that failed is tried in halves)."""
        now = self.clock()
        self.add(phase, self._last, now, "steps")
        self._marks[phase] = self._marks.get(phase, 0.0) + now - self._last
        self._last = now

    def stepped(self, rounds: int) -> None:
        """The step is over; `rounds` verdicts of rounds were in it."""
        self.rounds += rounds
        for phase, seconds in self._marks.items():
            self.round_seconds[phase] += seconds * rounds

    @property
    def stepped_at(self) -> float:
        """When the last mark was made."""
        return self._last
