"""A few clients on one verifier, said in Python: `simulate` is `simulator.play` for who has a scheduler's settings at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from scheduler import Scheduler, SchedulerConfig
from scheduler.step_profile import StepProfile
from simulator.baselines import Policy
from simulator.config import Class, ClosedLoop, Coefficients, Network, Simulation, Tier, VerifierGroup, Workload
from simulator.counters import Row
from simulator.distributions import constant
from simulator.play import play
from simulator.watch import Nowhere
from specfleet.core.protocol import Verdict

AT_ONCE = 1e-6
"""Seconds after the end in which what is under way is given up."""
WITHOUT_END = 1_000_000
"""Times that a refused client comes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSpec:
    """One user's machine. It asks for one text after another."""

    identity: str = ""
    """Its own where there is none; no two clients may have the same."""
    acceptance: float = 0.7
    """Chance that a guess is right, those before it being right."""
    draft_seconds: float = 0.005
    """Per drafted token."""
    round_trip: float = 0.02
    """Seconds to the verifier and back."""
    streams: int = 1
    """Texts at a time."""
    prompt_tokens: int = 64
    output_tokens: int = 256
    service_class: str = ""
    can_draft: bool = True

    @property
    def tier(self) -> Tier:
        return Tier(
            count=1,
            identity="tier",
            draft_seconds=constant(self.draft_seconds),
            acceptance=constant(self.acceptance),
            network=Network(round_trip=constant(self.round_trip)),
            streams=self.streams,
            prompt_tokens=constant(self.prompt_tokens),
            output_tokens=constant(self.output_tokens),
            service_class=self.service_class,
            can_draft=self.can_draft,
        )


@dataclass(slots=True)
class ClientResult:
    """What a client got between the warm-up and the end."""

    spec: ClientSpec
    tokens: int = 0
    drafted: int = 0
    """Verified."""
    accepted: int = 0
    refused: int = 0
    """Times that the verifier did not let it in: the whole run."""
    times: list[tuple[float, int]] = field(default_factory=list)
    """When tokens came, and how many: the whole run."""


@dataclass(frozen=True, slots=True)
class FleetResult:
    clients: list[ClientResult]
    seconds: float
    """Counted: without the warm-up."""
    steps: int
    busy_seconds: float
    """Both of the whole run."""

    @property
    def rates(self) -> list[float]:
        """Tokens per second, by client."""
        return [client.tokens / self.seconds for client in self.clients]

    @property
    def tokens_per_second(self) -> float:
        return sum(self.rates)


class _PerClient(Nowhere):
    """A sink that keeps what each client got."""

    def __init__(self, clients: Sequence[ClientSpec], warm_up: float) -> None:
        self.results = [ClientResult(spec) for spec in clients]
        self._warm_up = warm_up

    def round(self, now: float, row: Row, verdict: Verdict) -> None:
        own = self.results[row.client]
        own.times.append((now, len(verdict.tokens)))
        if now >= self._warm_up:
            own.tokens += len(verdict.tokens)
            own.drafted += verdict.drafted
            own.accepted += verdict.accepted

    def event(self, now: float, name: str, row: Row) -> None:
        if name == "turned away":
            self.results[row.client].refused += 1


def simulate(
    config: SchedulerConfig,
    profile: StepProfile,
    clients: Sequence[ClientSpec],
    *,
    seconds: float,
    warm_up: float = 0.0,
    noise: float = 0.03,
    seed: int = 0,
    max_sessions: int = 100_000,
) -> FleetResult:
    """Run `clients` for `seconds` of virtual time against a verifier whose steps take what `profile` says, times a normal
    variation of `noise`.

    Raises:
        ValueError: two clients have the same identity.
        AssertionError: a text is not the target's own, or something does not add up.
    """
    tiers = {spec.identity or f"client-{number}": spec.tier for number, spec in enumerate(clients)}
    if len(tiers) < len(clients):
        raise ValueError("two clients have the same identity; give one of them as many streams instead")
    fixed, per_token, per_cached, per_pair = profile.coefficients
    terms = Coefficients(fixed=fixed, per_token=per_token, per_cached=per_cached, per_pair=per_pair)
    group = VerifierGroup(
        profile=terms,
        noise=noise,
        kv_tokens=16_000_000,
        max_sessions=max_sessions,
        max_step_tokens=config.max_step_tokens,
    )
    simulation = Simulation(
        duration=seconds,
        warm_up=warm_up,
        drain=AT_ONCE,
        tiers=tiers,
        verifiers={"verifier": group},
        workload=Workload(closed_loop=ClosedLoop(), retries=WITHOUT_END),
        classes={
            one.name: Class(ttft=one.ttft_seconds, tpot=one.tpot_seconds, weight=one.weight) for one in config.classes
        },
    )
    given = Policy(config.speculation, config.speculation, config.batching, scheduler=lambda _: Scheduler(config))
    kept = _PerClient(clients, warm_up)
    played = play(simulation, given, seed, sinks=[kept])
    return FleetResult(kept.results, seconds - warm_up, played.total.steps, played.total.busy_seconds)
