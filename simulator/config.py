"""A simulation as its YAML file says it: fleets by tier, verifiers, workload, classes, policies, what to vary.

Every key is checked (simulator.document turns what pydantic finds into one line); a misspelt one is never ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    model_validator,
)

from scheduler.routing import DEFAULT as DEFAULT_ROUTING
from scheduler.routing import POLICIES as ROUTING
from simulator.baselines import Policy, policy
from simulator.distributions import Distribution, Drawn, constant
from simulator.machine import CARDS, MODELS, Machine, Parallel, Roofline, Shape, Terms, load_profile
from specfleet.core.errors import ConfigurationError
from specfleet.core.types import ServiceClass
from specfleet.core.words import nearest

Seconds = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
DrawnSeconds = Annotated[Distribution, Drawn(0.0)]
DrawnPositive = Annotated[Distribution, Drawn(0.0, above=True)]
DrawnShare = Annotated[Distribution, Drawn(0.0, 1.0)]
DrawnCount = Annotated[Distribution, Drawn(1.0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _one_of(known: Any) -> Any:
    """A text that is one of `known`."""

    def check(value: str) -> str:
        if value not in known:
            raise ValueError(f"one of {', '.join(known)}{nearest(value, known)}")
        return value

    return AfterValidator(check)


def _policy(value: Any) -> Any:
    if isinstance(value, Policy):
        return value
    try:
        if isinstance(value, dict):
            unknown = [key for key in value if key not in ("name", "policy")]
            if unknown or "policy" not in value:
                raise ValueError("a name, or {name: TEXT, policy: NAME}")
            return policy(str(value["policy"]), str(value.get("name", "")))
        return policy(str(value))
    except ConfigurationError as error:
        raise ValueError(str(error)) from None


class Network(Section):
    """A drafter's way to the verifiers."""

    round_trip: DrawnSeconds = constant(0.02)
    """Seconds there and back, halved for each way."""
    up: DrawnSeconds | None = None
    """Seconds to the verifier, where the ways differ."""
    down: DrawnSeconds | None = None
    """Seconds from the verifier."""
    jitter: Seconds = 0.0
    """Mean of what every message takes longer (exponential); messages never overtake each other."""
    bandwidth_up: Positive | None = None
    """Mbit/s to the verifier; unlimited by default."""
    bandwidth_down: Positive | None = None
    """Mbit/s from the verifier."""


class Availability(Section):
    """When a drafter's user is there. Requests that have begun go on."""

    on: Positive | None = None
    """Seconds at a time, in turn with `off`; every drafter begins somewhere in its own cycle."""
    off: Positive | None = None
    windows: tuple[tuple[Seconds, Seconds], ...] = ()
    """[from, to] in seconds of the run, instead."""

    @model_validator(mode="after")
    def _one_way(self) -> Availability:
        if bool(self.windows) == (self.on is not None) or (self.on is None) != (self.off is None):
            raise ValueError("either on and off, or windows")
        if any(end <= start for start, end in self.windows):
            raise ValueError("windows that end after they begin")
        return self


class HostOf(Section):
    """A machine that several daemons run on."""

    processors: Positive
    message_seconds: Seconds = 0.0
    """Of one processor, that a daemon takes to send or to receive a message, and to call its engine or to take in a result."""


class Tier(Section):
    """Drafters made from one template."""

    count: Count
    draft_seconds: DrawnPositive = constant(0.01)
    """Seconds per drafted token."""
    together: dict[Count, Positive] = {}
    """Instead: seconds per token of each of so many texts drafted together (`specfleet profile --drafter`)."""
    acceptance: DrawnShare = constant(0.7)
    """Chance that a drafted token is accepted, given that those before it were; drawn per drafter."""
    acceptance_trace: str | None = None
    """Instead: a file that says of recorded texts which positions a draft model had right (simulator.recorded)."""
    confidence: Seconds | None = None
    """How well a draft model's confidence tells right guesses from wrong ones: the distance of their means, in standard
    deviations. Drafts then end early, as in production; without it nothing does."""
    ahead: bool = True
    """Go on drafting while a round's verdict is on its way."""
    drift: tuple[tuple[Seconds, float], ...] = ()
    """[seconds, what is added to the acceptance then], linear in between."""
    network: Network = Network()
    streams: Count = 1
    """Texts at a time, on one machine."""
    identity: Literal["drafter", "tier"] = "drafter"
    """Whose share its tokens count to."""
    weight: Positive = 1.0
    """Of that identity's share."""
    service_class: str = ""
    """Of all its requests; else the workload's mix."""
    can_draft: bool = True
    cold_start: Seconds = 0.0
    """Seconds that its first draft takes longer."""
    availability: Availability | None = None
    host: str = ""
    """The machine of `hosts` that all its drafters, and their users' programs, run on; else each has one of its own."""
    threads: Positive = 1.0
    """Threads of that machine that its drafting speed was measured with."""
    prompt_tokens: DrawnCount | None = None
    output_tokens: DrawnCount | None = None
    """Of its requests, where they differ from the workload's."""


class RooflineOf(Section):
    """A card and a model that nobody has profiled."""

    model: Annotated[str, _one_of(MODELS)] | None = None
    card: Annotated[str, _one_of(CARDS)]
    parameters: Positive | None = None
    """For a model that is not in the list: parameters, layers, kv_heads and head_size."""
    layers: Count | None = None
    kv_heads: Count | None = None
    head_size: Count | None = None
    bytes_per_weight: Positive = 2.0
    launch: Seconds = 2e-3

    @model_validator(mode="after")
    def _complete(self) -> RooflineOf:
        shape = (self.parameters, self.layers, self.kv_heads, self.head_size)
        if (self.model is None) == (None in shape) and (self.model is None or any(one is not None for one in shape)):
            raise ValueError("either a model of the list, or parameters, layers, kv_heads and head_size")
        return self

    @property
    def shape(self) -> Shape:
        if self.model is not None:
            known = MODELS[self.model]
            return Shape(known.parameters, known.layers, known.kv_heads, known.head_size, self.bytes_per_weight)
        assert self.parameters and self.layers and self.kv_heads and self.head_size
        return Shape(self.parameters, self.layers, self.kv_heads, self.head_size, self.bytes_per_weight)


class Coefficients(Section):
    """A step's time in seconds, by its terms (scheduler.step_time)."""

    fixed: Seconds
    per_token: Seconds
    per_cached: Seconds = 0.0
    per_pair: Seconds = 0.0
    per_sequence: float = 0.0


class VerifierGroup(Section):
    """Verifiers that are alike."""

    count: Count = 1
    profile: str | Coefficients | None = None
    """Name of a shipped profile, a file, or the terms themselves."""
    roofline: RooflineOf | None = None
    """Instead of a profile."""
    gpus: Count = 1
    """Cards of each verifier. A roofline shares the work between them; a profile is taken to be measured on all of them
    unless `scaling` is given."""
    scaling: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Tensor-parallel efficiency: a profile of one card is divided by gpus * scaling."""
    kv_tokens: Annotated[int, Field(ge=64)] = 400_000
    max_step_tokens: Count = 512
    max_sessions: Count = 100_000
    prefix_cache: bool = False
    noise: Share = 0.03
    """Standard deviation of a step's time, relative."""
    profiled: bool = True
    """Whether the verifier was started with its profile; else it learns from steps."""
    draft_wait_seconds: Positive = 1.0
    host: str = ""
    """The machine of `hosts` that all of the group run on; else each has one of its own."""
    threads: Positive = 1.0
    """Threads of that machine that its profile was measured with."""

    @model_validator(mode="after")
    def _timed(self) -> VerifierGroup:
        if (self.profile is None) == (self.roofline is None):
            raise ValueError("timed by either a profile or a roofline")
        return self

    def machine(self, folder: Path) -> Machine:
        """Raises ConfigurationError."""
        if self.roofline is not None:
            return Roofline(self.roofline.shape, CARDS[self.roofline.card], self.gpus, self.roofline.launch)
        if isinstance(self.profile, Coefficients):
            base: Machine = Terms(**self.profile.model_dump(), source="configuration")
        else:
            base = load_profile(str(self.profile), folder)
        return base if self.scaling is None else Parallel(base, self.gpus, self.scaling)


class Class(Section):
    ttft: Positive | None = None
    """Seconds to the first token."""
    tpot: Positive | None = None
    """Seconds per token after it."""
    weight: Positive = 1.0


class ClosedLoop(Section):
    """Every stream asks for one text after another."""

    think_seconds: DrawnSeconds = constant(0.0)
    """Between the end of a text and the next request; the first comes after such a time, too."""
    requests: Count | None = None
    """In all, whose turn it is; then nobody asks again. Without it they ask until the end."""


class Poisson(Section):
    rate: Positive
    """Requests per second, for the whole fleet."""


class Bursts(Section):
    """Poisson arrivals whose rate goes up for a while, again and again."""

    rate: Positive
    burst_rate: Positive
    every: Positive
    """Seconds from one burst's beginning to the next."""
    length: Positive
    """Seconds that each lasts."""


class Trace(Section):
    file: str
    """Azure's CSV (TIMESTAMP, ContextTokens, GeneratedTokens) or Mooncake's JSON lines (timestamp in ms, input_length,
    output_length, hash_ids)."""
    speed: Positive = 1.0
    """Times as fast as it was recorded."""
    limit: Count | None = None
    """Rows to take."""
    max_prompt_tokens: Count | None = None
    max_output_tokens: Count | None = None
    """Longer ones are cut to this."""


class Prefix(Section):
    """Prompts that begin alike."""

    groups: Count = 1
    tokens: Count
    share: Share = 1.0
    """Of requests that begin with one of these."""


class Workload(Section):
    closed_loop: ClosedLoop | None = None
    poisson: Poisson | None = None
    bursts: Bursts | None = None
    trace: Trace | None = None
    prompt_tokens: DrawnCount = constant(64)
    output_tokens: DrawnCount = constant(128)
    prefix: Prefix | None = None
    classes: dict[str, Positive] = {}
    """Mix of service classes by weight; "" is none. Requests of a tier with a class of its own have that."""
    retries: Annotated[int, Field(ge=0)] = 3
    """How often a refused request is tried again, each time after the time that the verifier names."""

    @model_validator(mode="after")
    def _one_kind(self) -> Workload:
        kinds = ("closed_loop", "poisson", "bursts", "trace")
        if sum(getattr(self, kind) is not None for kind in kinds) != 1:
            raise ValueError(f"exactly one of {', '.join(kinds)}")
        return self


class Fault(Section):
    """Something breaks, and is mended."""

    at: Seconds
    """Of the run."""
    seconds: Positive
    """That it lasts."""
    crash: str | None = None
    """A verifier, or all of a group: its sessions are lost, and it comes back with nothing."""
    cut: str | None = None
    """A tier's links: what is sent arrives when they are mended; calls break when a keepalive finds out."""
    slow: str | None = None
    """A tier's links: every message takes `by` longer, each way."""
    by: Positive = 0.5

    @model_validator(mode="after")
    def _one_kind(self) -> Fault:
        if sum(one is not None for one in (self.crash, self.cut, self.slow)) != 1:
            raise ValueError("exactly one of crash, cut, slow")
        if "by" in self.model_fields_set and self.slow is None:
            raise ValueError("by only with slow")
        return self


class Costs(Section):
    """Stated assumptions; nothing here is measured."""

    gpu_hour: Annotated[float, Field(ge=0.0)] = 2.0
    """Price of an hour of one GPU, busy or not."""
    gpu_watts: Annotated[float, Field(ge=0.0)] = 400.0
    """Of one GPU in a step."""
    gpu_idle_watts: Annotated[float, Field(ge=0.0)] = 80.0
    drafter_watts: Annotated[float, Field(ge=0.0)] = 10.0
    """Of one drafter while it drafts."""


class Capacity(Section):
    """Search for the largest load that a class still gets through."""

    vary: str
    """Key of a whole number in this file, such as tiers.phone.count."""
    low: Count = 1
    high: Count = 256
    attainment: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Share of requests that must keep their class's targets."""
    service_class: str | None = None
    """Only its requests; all by default."""


class Simulation(Section):
    description: str = ""
    duration: Positive
    """Seconds in which requests are issued."""
    warm_up: Seconds = 0.0
    """Seconds at the beginning that figures leave out."""
    drain: Positive = 600.0
    """Seconds after `duration` in which what was issued may end; what is left then has failed."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    policies: Annotated[
        tuple[Annotated[InstanceOf[Policy], BeforeValidator(_policy), PlainSerializer(lambda one: one.name)], ...],
        Field(min_length=1),
    ] = (policy("fair-goodput"),)
    routing: Annotated[str, _one_of(ROUTING)] = DEFAULT_ROUTING
    tiers: Annotated[dict[str, Tier], Field(min_length=1)]
    verifiers: Annotated[dict[str, VerifierGroup], Field(min_length=1)]
    workload: Workload
    hosts: dict[str, HostOf] = {}
    classes: dict[str, Class] = {}
    faults: tuple[Fault, ...] = ()
    costs: Costs | None = None
    capacity: Capacity | None = None
    grid: dict[str, Any] = {}
    """What to vary: a key of this file with a list of values, or a name with {label: {key: value, …}}. All combinations are
    run."""

    @model_validator(mode="after")
    def _consistent(self) -> Simulation:
        if self.warm_up >= self.duration:
            raise ValueError(f"warm_up is {self.warm_up:g}, must be shorter than the duration, {self.duration:g}")
        used = [(f"tiers.{name}.service_class", tier.service_class) for name, tier in self.tiers.items()]
        used += [("workload.classes", name) for name in self.workload.classes]
        used += [("capacity.service_class", self.capacity.service_class or "")] if self.capacity else []
        for where, name in used:
            if name and name not in self.classes:
                there = f"one of {', '.join(self.classes)}" if self.classes else "empty, for there are no classes"
                raise ValueError(f"{where} is {name!r}, must be {there}{nearest(name, self.classes)}")
        for where, name in self._hosted:
            if name and name not in self.hosts:
                there = f"one of {', '.join(self.hosts)}" if self.hosts else "empty, for there are no hosts"
                raise ValueError(f"{where} is {name!r}, must be {there}{nearest(name, self.hosts)}")
        for number, fault in enumerate(self.faults):
            for kind, known in (("crash", self.verifier_names), ("cut", self.tiers), ("slow", self.tiers)):
                name = getattr(fault, kind)
                if name is not None and name not in known:
                    raise ValueError(
                        f"faults.{number}.{kind} is {name!r}, must be one of {', '.join(known)}{nearest(name, known)}"
                    )
        return self

    @property
    def _hosted(self) -> list[tuple[str, str]]:
        """Key and value of every `host`."""
        tiers = [(f"tiers.{name}.host", tier.host) for name, tier in self.tiers.items()]
        return tiers + [(f"verifiers.{name}.host", group.host) for name, group in self.verifiers.items()]

    @property
    def verifier_names(self) -> list[str]:
        """Of groups, and of each verifier of a group that has several."""
        single = [f"{name}-{number}" for name, own in self.verifiers.items() for number in range(own.count)]
        return [*self.verifiers, *(name for name in single if self.verifiers[name.rpartition("-")[0]].count > 1)]

    @property
    def service_classes(self) -> tuple[ServiceClass, ...]:
        return tuple(ServiceClass(name, one.ttft, one.tpot, one.weight) for name, one in self.classes.items())

    @property
    def drafters(self) -> int:
        return sum(tier.count for tier in self.tiers.values())
