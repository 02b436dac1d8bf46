"""Several verifiers behind one connection: who gets a generation, and what happens when one is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from drafter.config import DrafterConfig
from drafter.observer import Silent
from drafter.router import FRESH_SECONDS, Router
from scheduler import routing
from specfleet.core.config import load
from specfleet.core.errors import (
    Cancelled,
    ConfigurationError,
    ConnectionError_,
    InvalidRequest,
    ModelMismatch,
    SpecfleetError,
    Unavailable,
)
from specfleet.core.protocol import Finished, Open, Opened, VerifyRequest, VerifyResponse
from specfleet.core.types import LOCAL, FinishReason, Load, ModelInfo, SamplingParams, Usage
from specfleet.core.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("a", "b", "c"), ())
OTHER = Vocabulary(("a", "c", "b"), ())
OPENING = Open(prompt=(1,), sampling=SamplingParams(max_tokens=1))


@dataclass
class Verifier:
    """Implements VerifierConnection; away, it answers nothing."""

    target: str
    away: SpecfleetError | None = None
    silent: bool = False
    """It takes calls and never answers them."""
    sessions: int = 0
    vocabulary: Vocabulary = VOCABULARY
    name: str = "m"
    context: int = 100
    refuses: SpecfleetError | None = None
    breaks: SpecfleetError | None = None
    """Raised behind Opened."""
    openings: list[Open] = field(default_factory=list)
    asked: int = 0
    closed: bool = False

    async def verify(self) -> Stream:
        return Stream(self)

    async def model(self) -> ModelInfo:
        await self._answer()
        return ModelInfo(self.name, 3, self.vocabulary.digest(), self.context, ())

    async def load(self) -> Load:
        self.asked += 1
        await self._answer()
        return Load(queue=0, sessions=self.sessions, free_kv_tokens=100, step_seconds=0.01)

    async def tokenizer_files(self) -> dict[str, bytes]:
        return {"from": self.target.encode()}

    async def close(self) -> None:
        self.closed = True

    async def _answer(self) -> None:
        if self.silent:
            await asyncio.Event().wait()
        if self.away is not None:
            raise self.away


@dataclass
class Stream:
    verifier: Verifier
    opening: Open | None = None
    answers: int = 0

    async def send(self, message: VerifyRequest) -> None:
        if isinstance(message, Open):
            self.opening = message

    async def receive(self) -> VerifyResponse | None:
        assert self.opening is not None
        verifier, self.answers = self.verifier, self.answers + 1
        if verifier.away is not None:
            raise verifier.away
        if self.answers == 1:
            if verifier.refuses is not None:
                raise verifier.refuses
            if self.opening.vocabulary_checksums:
                assert verifier.vocabulary.first_difference(self.opening.vocabulary_checksums) is not None
                raise ModelMismatch("token 1 differs")
            verifier.openings.append(self.opening)
            model = await verifier.model()
            return Opened(grant=LOCAL, model=model, prompt_tokens=1, cached_tokens=0, verifier=verifier.target)
        if verifier.breaks is not None:
            raise verifier.breaks
        return Finished(FinishReason.LENGTH, Usage())

    def cancel(self) -> None: ...


class Switches(Silent):
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def verifier_switched(self, reason: str) -> None:
        self.reasons.append(reason)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Fleet:
    router: Router
    verifiers: Sequence[Verifier]
    switches: Switches
    clock: Clock

    async def open(self) -> str:
        """The verifier that took a generation."""
        stream = await self.router.verify()
        await stream.send(OPENING)
        opened = await stream.receive()
        assert isinstance(opened, Opened)
        return opened.verifier

    async def many(self, count: int) -> list[str]:
        return [await self.open() for _ in range(count)]


@asynccontextmanager
async def routed(*verifiers: Verifier, policy: str = "jsq", seconds: float = 0.0) -> AsyncIterator[Fleet]:
    switches, clock = Switches(), Clock()
    router = Router(verifiers, routing.build(policy, np.random.default_rng(1)), clock, switches)
    try:
        await router.reach(seconds)
        await router.agree(VOCABULARY)
        yield Fleet(router, verifiers, switches, clock)
    finally:
        await router.close()
    assert all(one.closed for one in verifiers)


def gone(target: str = "b:1") -> ConnectionError_:
    return ConnectionError_(f"cannot reach {target}")


@pytest.mark.asyncio
async def test_the_least_loaded_gets_the_generation() -> None:
    """By the loads that verifiers report."""
    async with routed(Verifier("a:1", sessions=5), Verifier("b:1", sessions=1), Verifier("c:1", sessions=3)) as fleet:
        assert "b:1" == await fleet.open()


@pytest.mark.asyncio
async def test_generations_opened_since_a_report_count() -> None:
    """Eight at once are spread over two idle verifiers, though each was asked for its load once."""
    async with routed(Verifier("a:1"), Verifier("b:1")) as fleet:
        taken = await fleet.many(8)
        assert {4} == {taken.count("a:1"), taken.count("b:1")}
        assert [1, 1] == [one.asked for one in fleet.verifiers]
        fleet.clock.now += FRESH_SECONDS
        await fleet.open()
        assert [2, 2] == [one.asked for one in fleet.verifiers]


@pytest.mark.asyncio
async def test_round_robin_takes_turns() -> None:
    async with routed(Verifier("a:1"), Verifier("b:1"), policy="round-robin") as fleet:
        taken = await fleet.many(6)
        assert taken[:2] * 3 == taken and {"a:1", "b:1"} == set(taken)


@pytest.mark.parametrize(("away", "reason"), [(gone(), "unreachable"), (Unavailable("draining"), "draining")])
@pytest.mark.asyncio
async def test_a_verifier_that_is_lost_is_passed_over(away: SpecfleetError, reason: str) -> None:
    """Found out at opening: the generation goes to the other, and the switch is counted once, not per generation."""
    async with routed(Verifier("a:1", sessions=5), Verifier("b:1")) as fleet:
        assert "b:1" == await fleet.open()
        fleet.verifiers[1].away = away
        assert ["a:1"] * 3 == await fleet.many(3)
        assert [reason] == fleet.switches.reasons


@pytest.mark.asyncio
async def test_a_lost_verifier_comes_back() -> None:
    """Found out by its load: lost without a generation noticing, and used again once it answers."""
    async with routed(Verifier("a:1", sessions=5), Verifier("b:1")) as fleet:
        fleet.verifiers[1].away = gone()
        fleet.clock.now += 1.0
        assert "a:1" == await fleet.open()
        assert ["unreachable"] == fleet.switches.reasons
        fleet.verifiers[1].away = None
        fleet.clock.now += 1.0
        await fleet.open()  # asks it again, and does not wait for the answer
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert "b:1" == await fleet.open()


@pytest.mark.asyncio
async def test_all_lost_raises_the_last_error() -> None:
    """Each was tried once."""
    async with routed(Verifier("a:1"), Verifier("b:1")) as fleet:
        for one in fleet.verifiers:
            one.away = gone(one.target)
        with pytest.raises(ConnectionError_, match=r"cannot reach [ab]:1"):
            await fleet.open()
        assert 2 == len(fleet.switches.reasons)


@pytest.mark.asyncio
async def test_a_silent_verifier_holds_nobody_up_for_long() -> None:
    """One that neither answers nor refuses is left out after half a second, and not waited for again."""
    async with routed(Verifier("a:1"), Verifier("b:1")) as fleet:
        fleet.verifiers[0].silent = True
        async with asyncio.timeout(2.0):
            assert ["b:1"] * 3 == await fleet.many(3)
        fleet.clock.now += 5.0
        async with asyncio.timeout(0.3):
            assert "b:1" == await fleet.open()


@pytest.mark.asyncio
async def test_a_refusal_is_not_shopped_around() -> None:
    """What one verifier refuses as wrong is wrong: no other is asked."""
    refusal = InvalidRequest("no")
    async with routed(Verifier("a:1", refuses=refusal), Verifier("b:1", refuses=refusal)) as fleet:
        with pytest.raises(InvalidRequest):
            await fleet.open()
        assert [] == fleet.switches.reasons


@pytest.mark.asyncio
async def test_what_has_begun_stays_where_it_is() -> None:
    """A stream that breaks behind Opened is broken: going on elsewhere is not this connection's to decide."""
    async with routed(Verifier("a:1", breaks=gone()), Verifier("b:1", breaks=gone())) as fleet:
        stream = await fleet.router.verify()
        await stream.send(OPENING)
        assert isinstance(await stream.receive(), Opened)
        with pytest.raises(ConnectionError_):
            await stream.receive()
        assert 1 == sum(len(one.openings) for one in fleet.verifiers)


@pytest.mark.parametrize(("breaks", "reason"), [(gone(), "unreachable"), (Cancelled("time is up"), "draining")])
@pytest.mark.asyncio
async def test_where_a_stream_broke_nothing_is_opened_next(breaks: SpecfleetError, reason: str) -> None:
    """Its verifier is left out at once, without waiting for its load; so what goes on does so elsewhere."""
    async with routed(Verifier("a:1", breaks=breaks), Verifier("b:1", sessions=9)) as fleet:
        stream = await fleet.router.verify()
        await stream.send(OPENING)
        assert isinstance(await stream.receive(), Opened)
        with pytest.raises(type(breaks)):
            await stream.receive()
        assert ["b:1"] * 3 == await fleet.many(3)
        assert [reason] == fleet.switches.reasons


@pytest.mark.asyncio
async def test_another_vocabulary_is_refused_at_the_start() -> None:
    """Naming the verifier, and what it says differs."""
    with pytest.raises(ModelMismatch, match="verifier b:1: token 1 differs"):
        async with routed(Verifier("a:1"), Verifier("b:1", vocabulary=OTHER)):
            pass


@pytest.mark.asyncio
async def test_another_model_is_refused_at_the_start() -> None:
    with pytest.raises(ModelMismatch, match="verifier b:1 serves other, the others serve m"):
        async with routed(Verifier("a:1"), Verifier("b:1", name="other")):
            pass


@pytest.mark.asyncio
async def test_one_that_comes_later_is_held_to_the_same() -> None:
    """Away at the start and back with another vocabulary: it gets nothing, whatever its load."""
    late = Verifier("b:1", away=gone(), vocabulary=OTHER)
    async with routed(Verifier("a:1", sessions=9), late) as fleet:
        assert "a:1" == await fleet.open()
        late.away = None
        for _ in range(4):
            fleet.clock.now += 2.0
            assert "a:1" == await fleet.open()
        assert [] == late.openings
        late.vocabulary = VOCABULARY
        fleet.clock.now += 2.0
        await fleet.open()
        await asyncio.sleep(0.01)
        assert "b:1" == await fleet.open()
        assert [] == fleet.switches.reasons


@pytest.mark.asyncio
async def test_openings_name_the_model() -> None:
    """A verifier that was replaced by another model's refuses instead of writing other text."""
    async with routed(Verifier("a:1")) as fleet:
        await fleet.open()
        assert ["m"] == [one.model for one in fleet.verifiers[0].openings]


@pytest.mark.asyncio
async def test_the_shortest_context_counts() -> None:
    """A prompt must fit wherever it goes."""
    async with routed(Verifier("a:1", context=100), Verifier("b:1", context=50)) as fleet:
        assert 50 == (await fleet.router.model()).context_length


@pytest.mark.asyncio
async def test_together_they_are_one_connection() -> None:
    """Its target names all, its load is everybody's, files come from one that answers; one verifier alone is not asked."""
    async with routed(
        Verifier("a:1", away=gone(), sessions=7), Verifier("b:1", sessions=2), Verifier("c:1", sessions=3)
    ) as f:
        assert "a:1,b:1,c:1" == f.router.target
        assert {"from": b"b:1"} == await f.router.tokenizer_files()
        assert Load(queue=0, sessions=5, free_kv_tokens=200, step_seconds=0.01) == await f.router.load()
    async with routed(Verifier("a:1")) as fleet:
        assert "a:1" == await fleet.open()
        assert 0 == fleet.verifiers[0].asked


@pytest.mark.asyncio
async def test_nobody_at_the_start_is_an_error() -> None:
    with pytest.raises(ConnectionError_, match="cannot reach"):
        async with routed(Verifier("a:1", away=gone()), Verifier("b:1", away=gone())):
            pass


# --- configuration -------------------------------------------------------------------------------------------------


def test_one_or_several_verifiers_can_be_given_everywhere() -> None:
    """As flags, in the environment, and in a file as a text or a list."""
    both = ("a:1", "b:2")
    assert both == load(DrafterConfig, section="drafter", env={}, flags={"model": "m", "verifier": both}).verifier
    environment = {"SPECFLEET_DRAFTER_MODEL": "m", "SPECFLEET_DRAFTER_VERIFIER": "a:1,b:2"}
    assert both == load(DrafterConfig, section="drafter", env=environment).verifier
    assert ("127.0.0.1:7600",) == DrafterConfig(model="m").verifier
    assert "p2c" == DrafterConfig(model="m").routing


@pytest.mark.parametrize(
    ("toml", "expected"), [('"a:1"', ("a:1",)), ('["a:1"]', ("a:1",)), ('["a:1", "b:2"]', ("a:1", "b:2"))]
)
def test_verifiers_in_a_file(tmp_path_factory: pytest.TempPathFactory, toml: str, expected: tuple[str, ...]) -> None:
    file = tmp_path_factory.mktemp("config") / "fleet.toml"
    file.write_text(f'[drafter]\nmodel = "m"\nverifier = {toml}\n')
    assert expected == load(DrafterConfig, section="drafter", file=file, env={}).verifier


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"verifier": ("a:1", "b")}, "--verifier is 'b', must be HOST:PORT"),
        ({"verifier": ("a:1", "a:1")}, "a:1 is in it twice"),
        ({"verifier": ()}, "at least one HOST:PORT"),
        ({"routing": "nearest"}, "--routing is 'nearest', must be one of 'jsq', 'p2c', 'round-robin' or 'random'"),
    ],
)
def test_wrong_verifiers_are_refused(flags: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load(DrafterConfig, section="drafter", env={}, flags={"model": "m", **flags})


def test_the_policies_of_flag_and_scheduler_are_the_same() -> None:
    """The flag offers what there is."""
    for name in routing.POLICIES:
        assert name == DrafterConfig(model="m", routing=name).routing
