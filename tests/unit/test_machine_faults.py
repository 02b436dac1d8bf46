"""Faults in the machine, and readers that do not read: they cost those they concern, and nobody else."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence

import grpc.aio
import pytest

from specfleet.client.stream import MOVABLE
from specfleet.core.errors import InternalError, StreamInterrupted, Unavailable
from specfleet.core.generation import Event, GenerationRequest, Tokens
from specfleet.core.protocol import Open, Opened, VerifyRequest, VerifyResponse
from specfleet.core.step import StepItem, StepResult
from specfleet.core.types import SamplingParams
from specfleet.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from specfleet.wire.channel import open_channel
from specfleet.wire.generation import GenerationService
from specfleet.wire.status import from_rpc_error
from support.engine import FakeEngine, reference
from support.fleet import GREEDY, TABLE, Fleet, fleet
from support.generation import Counter
from verifier.loop import MAX_UNREAD
from verifier.watchdog import Watchdog

ENDLESS = SamplingParams(temperature=0.0, max_tokens=3500)


class Faulty(FakeEngine):
    """Fails steps of more than `most` items, and those that hold a sequence of `broken`, before anything is changed."""

    def __init__(self, most: int = 1000, broken: Sequence[int] = ()) -> None:
        super().__init__()
        self.most = most
        self.broken = set(broken)
        self.failures = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def step(self, items: Sequence[StepItem]) -> list[StepResult]:
        await self.gate.wait()
        if len(items) > self.most:
            self.failures += 1
            raise MemoryError("out of memory")
        bad = [item.sequence for item in items if item.sequence in self.broken]
        if bad:
            self.failures += 1
            raise InternalError(f"the model's logits are not finite for sequences {bad}")
        return await super().step(items)


async def texts(one: Fleet, count: int) -> list[list[int] | BaseException]:
    return await asyncio.gather(*(one.generate([n, 2, 3]) for n in range(count)), return_exceptions=True)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for it, up to ten seconds."""
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to hold")


@pytest.mark.parametrize("policy", ["none", "fixed:4"])
@pytest.mark.asyncio
async def test_a_step_too_large_for_memory_is_done_in_smaller_ones(policy: str) -> None:
    """Out of memory with five sessions in a step, room for two: everybody gets the right text, and only waits."""
    engine = Faulty(most=2)
    async with fleet(policy, engines=(engine, FakeEngine())) as one:
        assert [reference([n, 2, 3], 40) for n in range(5)] == await texts(one, 5)
        assert engine.failures > 0
        await one.quiet()


@pytest.mark.asyncio
async def test_logits_that_are_no_numbers_end_one_session(caplog: pytest.LogCaptureFixture) -> None:
    """NaN in one session's rows: it ends with the engine's error, the four beside it go on."""
    async with fleet("none", engines=(Faulty(broken=[3]), FakeEngine())) as one:
        found = await texts(one, 5)
        failed = [text for text in found if isinstance(text, BaseException)]
        assert [InternalError] == [type(error) for error in failed] and "not finite" in str(failed[0])
        for number, text in enumerate(found):
            assert text in (reference([number, 2, 3], 40), failed[0])
        await one.quiet()


@pytest.mark.asyncio
async def test_an_engine_that_always_fails_ends_sessions_and_not_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    """Everybody gets a typed error, with the reason in the log; once the engine works again, so does the loop."""
    engine = Faulty(most=0)
    async with fleet("none", engines=(engine, FakeEngine())) as one:
        assert {InternalError} == {type(error) for error in await texts(one, 5)}
        assert any(record.exc_info for record in caplog.records if record.name == "verifier.loop")
        engine.most = 1000
        assert reference([1, 2], 40) == await one.generate([1, 2])
        await one.quiet()


@pytest.mark.asyncio
async def test_a_stuck_step_turns_readiness_off() -> None:
    """The watchdog: not ready, whoever is there is told to move, whoever comes is refused; when the step ends, ready again."""
    engine = Faulty()
    told: list[bool] = []

    async def ready(value: bool) -> None:
        told.append(value)

    async with fleet("none", engines=(engine, FakeEngine())) as one:
        watching = asyncio.create_task(Watchdog(one.loop, one.verifier, ready, 0.1).run())
        assert reference([1, 2], 40) == await one.generate([1, 2])
        engine.gate.clear()
        stream = await one.connection.verify()
        await stream.send(Open(prompt=(1, 2), sampling=GREEDY, vocabulary_digest=TABLE.digest()))
        with pytest.raises(Unavailable, match="has taken more than"):
            while True:
                await stream.receive()
        assert [False] == told
        with pytest.raises(Unavailable):
            one.verifier.load()
        late = await one.connection.verify()
        await late.send(Open(prompt=(1, 2), sampling=GREEDY, vocabulary_digest=TABLE.digest()))
        with pytest.raises(Unavailable) as caught:
            await late.receive()
        assert caught.value.retry_after is not None
        engine.gate.set()
        await until(lambda: told == [False, True])
        assert reference([1, 2], 40) == await one.generate([1, 2])
        watching.cancel()
        await one.quiet()


class Unread:
    """A drafter's connection that takes Opened, and then nothing for a while."""

    def __init__(self) -> None:
        self.reading = asyncio.Event()
        self._open: list[VerifyRequest] = [
            Open(prompt=(1, 2), sampling=ENDLESS, vocabulary_digest=TABLE.digest(), can_draft=False)
        ]

    async def receive(self) -> VerifyRequest | None:
        if self._open:
            return self._open.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: VerifyResponse) -> None:
        if not isinstance(message, Opened):
            await self.reading.wait()


@pytest.mark.asyncio
async def test_a_reader_that_does_not_read_holds_nothing() -> None:
    """Ten of them: each is ended once MAX_UNREAD messages wait, its pages are free while it still does not read, and who reads
    beside them gets the text. Reading on, they are told why."""
    async with fleet("none") as one:
        readers = [Unread() for _ in range(10)]
        tasks = [asyncio.create_task(one.verifier.serve(reader, f"r{n}")) for n, reader in enumerate(readers)]
        beside = await one.generate([1, 2, 3])
        await until(lambda: not one.engine.texts)
        assert reference([1, 2, 3], 40) == beside
        assert max(len(step) for step in one.engine.steps) == 11
        assert len(one.engine.steps) < MAX_UNREAD + 100
        assert not any(task.done() for task in tasks)
        for reader in readers:
            reader.reading.set()
        for task in tasks:
            with pytest.raises(StreamInterrupted, match=f"at most {MAX_UNREAD} may"):
                await task
        await one.quiet()


@pytest.mark.parametrize("slow", [0, 10])
@pytest.mark.asyncio
async def test_readers_that_do_not_read_slow_nobody(slow: int) -> None:
    """Eight streams take as many steps beside ten of them as beside none (a tenth more at most, for their prefill)."""
    async with fleet("none", delay=0.001) as one:
        tasks = [asyncio.create_task(one.verifier.serve(Unread(), f"r{n}")) for n in range(slow)]
        await asyncio.sleep(0.05)
        before = len(one.engine.steps)
        assert [reference([n, 2, 3], 40) for n in range(8)] == await texts(one, 8)
        assert len(one.engine.steps) - before <= 44
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await one.quiet()


@pytest.mark.asyncio
async def test_a_cancelled_stream_is_in_one_more_step_at_most() -> None:
    """Its pages are free before the step after the one that runs."""
    async with fleet("none", delay=0.01) as one:
        stream = await one.connection.verify()
        await stream.send(Open(prompt=(1, 2), sampling=ENDLESS, vocabulary_digest=TABLE.digest()))
        for _ in range(3):
            await stream.receive()
        beside = asyncio.create_task(one.generate([1, 2, 3]))
        await asyncio.sleep(0.05)
        before = len(one.engine.steps)
        stream.cancel()
        await beside
        assert [] == [step for step in one.engine.steps[before + 1 :] if any(item.sequence == 1 for item in step)]
        await one.quiet()


def test_a_line_that_cannot_be_written_is_dropped() -> None:
    """A full disk under stdout and stderr: lines and log are lost, the process goes on and ends with exit code 0."""
    code = (
        "import logging\n"
        "from specfleet.observability import log\n"
        "log.configure('info')\n"
        "for n in range(1000): log.say('x' * 100); logging.getLogger('x').warning('y' * 100)\n"
    )
    with open("/dev/full", "w") as full:  # noqa: PTH123
        assert 0 == subprocess.run([sys.executable, "-c", code], stdout=full, stderr=full, check=False).returncode


class Wordy(Counter):
    """Fills whatever lies between it and its reader."""

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        try:
            while True:
                yield Tokens((1,), "x" * 100_000)
        finally:
            self.closed += 1


@pytest.mark.asyncio
async def test_a_caller_that_takes_nothing_is_ended_and_may_go_on() -> None:
    """Generate waits so long for its reader and no longer; the generator is closed then, and the error lets it go on."""
    counter = Wordy()
    server = grpc.aio.server()
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationService(counter, idle_seconds=0.3), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with open_channel(address) as channel:
        sampling = common_pb2.SamplingParams(max_tokens=1, top_p=1.0)
        call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(
            generation_pb2.GenerateRequest(prompt="x", sampling=sampling)
        )
        await until(lambda: counter.closed == 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while True:
                await call.read()
        assert isinstance(from_rpc_error(caught.value), MOVABLE)
    await server.stop(0.0)
