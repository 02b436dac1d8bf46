"""Real daemons that are killed, restarted and drained under load: every stream has exactly the ids of an undisturbed run.

`make test` runs a few streams and kills; `make soak` (SPECFLEET_SOAK=1) 32 streams and 20 kills.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from specfleet import AsyncClient, Reply, SamplingParams
from support.daemons import ANY_PORT, Daemon, wait_until_empty
from support.pair import DRAFT, TARGET, Reference, prompts

SOAK = "SPECFLEET_SOAK" in os.environ
STREAMS, TOKENS, KILLS = (32, 96, 20) if SOAK else (8, 64, 3)
TEMPERATURE, TOP_P = 0.8, 0.95
READY_SECONDS = 90.0
POLICY = ("--speculation", "random")
"""Every mode is somewhere in it when a daemon dies."""


@dataclass
class Work:
    """Prompts, half of them greedy and half seeded, and the ids that the target alone gives."""

    prompts: list[str]
    sampling: list[SamplingParams]
    expected: list[list[int]]

    @classmethod
    def make(cls, count: int, tokens: int) -> Work:
        reference, found = Reference(), prompts(count)
        sampling, expected = [], []
        for number, prompt in enumerate(found):
            if number % 2:
                params = SamplingParams(max_tokens=tokens, temperature=TEMPERATURE, top_p=TOP_P, seed=number)
                expected.append(reference.seeded(prompt, tokens, TEMPERATURE, TOP_P, number))
            else:
                params = SamplingParams(max_tokens=tokens, temperature=0.0)
                expected.append(reference.greedy(prompt, tokens))
            sampling.append(params)
        return cls(found, sampling, expected)

    async def once(self, client: AsyncClient) -> list[Reply]:
        """All streams at a time; fails where one has other ids than it must."""
        replies = await asyncio.gather(
            *(client.generate(prompt, params) for prompt, params in zip(self.prompts, self.sampling, strict=True))
        )
        for number, (reply, expected) in enumerate(zip(replies, self.expected, strict=True)):
            assert expected == list(reply.token_ids), f"stream {number}, {reply.speculation.resumes} resumes"
        return list(replies)


@pytest.fixture(scope="module")
def work() -> Iterator[Work]:
    yield Work.make(STREAMS, TOKENS)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Restartable:
    """A daemon on a port of its own, that can be started again after it was killed."""

    def __init__(self, *arguments: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.arguments = (*arguments, "--listen", self.address, "--http", "", "--metrics", ANY_PORT)
        self.daemon = Daemon(*self.arguments)

    @property
    def alive(self) -> bool:
        return self.daemon.process.poll() is None

    def wait(self) -> None:
        self.daemon.wait_ready(READY_SECONDS)

    def kill(self) -> None:
        self.daemon.process.kill()
        self.daemon.process.wait()

    async def restart(self, *, kill: bool = True) -> None:
        """Killed, or told to stop; then started, and ready."""
        if kill:
            self.kill()
        else:
            self.daemon.process.send_signal(signal.SIGTERM)
            assert 0 == await asyncio.to_thread(self.daemon.process.wait, 60.0), self.daemon.output
        self.daemon = Daemon(*self.arguments)
        await asyncio.to_thread(self.wait)


class Fleet:
    """Two verifiers; a drafter that knows the first only, and two that know both."""

    def __init__(self) -> None:
        verifier = ("verifier", "--model", str(TARGET), *POLICY, "--drain-seconds", "1")
        self.verifiers = [Restartable(*verifier), Restartable(*verifier)]
        first, second = (("--verifier", one.address) for one in self.verifiers)
        for one in self.verifiers:
            one.wait()
        self.single = Restartable("drafter", "--model", str(DRAFT), *first)
        self.drafters = [Restartable("drafter", "--model", name, *first, *second) for name in (str(DRAFT), "ngram")]
        for one in (self.single, *self.drafters):
            one.wait()

    @property
    def all(self) -> list[Restartable]:
        return [self.single, *self.drafters, *self.verifiers]

    def mend(self) -> None:
        """Start what a test has killed for good."""
        dead = [one for one in self.all if not one.alive]
        for one in dead:
            one.daemon = Daemon(*one.arguments)
        for one in dead:
            one.wait()

    def check(self) -> None:
        """Verifiers hold nothing, and nobody who is alive said anything of a bug."""
        for one in self.verifiers:
            if one.alive:
                wait_until_empty(one.daemon)
        for one in self.all:
            assert "Traceback" not in one.daemon.output, one.daemon.output

    def stop(self) -> list[int]:
        return [one.daemon.stop(30.0) for one in self.all]


@pytest.fixture(scope="module")
def daemons() -> Iterator[Fleet]:
    fleet = Fleet()
    try:
        yield fleet
        fleet.mend()
    finally:
        codes = fleet.stop()
    assert {0} == set(codes)


@pytest.fixture
def fleet(daemons: Fleet) -> Iterator[Fleet]:
    """All of it alive; afterwards nothing is held."""
    daemons.mend()
    yield daemons
    daemons.check()


async def under_load(work: Work, targets: Sequence[str], disturb: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Streams again and again until the disturbance is over and one more round is whole. Returns how often one resumed."""
    async with AsyncClient(list(targets), timeout=300) as client:
        disturbance = asyncio.create_task(disturb())
        resumes = 0
        try:
            while True:
                over = disturbance.done()
                resumes += sum(reply.speculation.resumes for reply in await work.once(client))
                if over:
                    break
        finally:
            disturbance.cancel()
            results = await asyncio.gather(disturbance, return_exceptions=True)
        assert [None] == results
        return resumes


@pytest.mark.timeout(1800)
def test_a_verifier_killed_again_and_again(work: Work, fleet: Fleet) -> None:
    """kill -9 at random moments, restart on the same port, nobody else to go to: a wait, and the same text."""
    rng = np.random.default_rng(1)

    async def kills() -> None:
        for _ in range(KILLS):
            await asyncio.sleep(float(rng.uniform(0.3, 2.5)))
            await fleet.verifiers[0].restart()

    resumes = asyncio.run(under_load(work, [fleet.single.address], kills))
    assert resumes >= KILLS
    assert resumes == fleet.single.daemon.metric("specfleet_drafter_resumes_total")


@pytest.mark.timeout(600)
def test_a_verifier_told_to_stop_is_waited_for(fleet: Fleet) -> None:
    """SIGTERM while a long text runs, and a new process: ids and text are whole."""
    sampling = SamplingParams(max_tokens=300, temperature=0.0, ignore_eos=True)

    async def main() -> None:
        async with AsyncClient(fleet.single.address, timeout=120) as client:
            undisturbed = await client.generate("The old house", sampling)
            async with client.stream("The old house", sampling) as stream:
                async for _ in stream:
                    if len(stream.token_ids) >= 20:
                        break
                await fleet.verifiers[0].restart(kill=False)
                async for _ in stream:
                    pass
            assert (undisturbed.token_ids, undisturbed.text) == (stream.token_ids, stream.text)

    asyncio.run(main())


@pytest.mark.timeout(600)
def test_verifiers_restarted_one_after_the_other(work: Work, fleet: Fleet) -> None:
    """SIGTERM under load, a second for what runs, then a new process: no generation fails, every exit code is 0."""

    async def roll() -> None:
        for one in fleet.verifiers:
            await asyncio.sleep(0.7)
            await one.restart(kill=False)

    asyncio.run(under_load(work, [fleet.drafters[0].address], roll))


@pytest.mark.timeout(1800)
def test_one_of_two_drafters_killed(work: Work, fleet: Fleet) -> None:
    """Killed or told to stop, the SDK goes on through its second target; with both gone, through the verifier itself."""

    async def kills() -> None:
        for number in range(KILLS if SOAK else 1):
            await asyncio.sleep(0.7)
            await fleet.drafters[number % 2].restart(kill=number % 4 < 2)
        await asyncio.sleep(0.7)
        for each in fleet.drafters:
            each.kill()

    targets = [one.address for one in (*fleet.drafters, fleet.verifiers[0])]
    assert 0 < asyncio.run(under_load(work, targets, kills))


@pytest.mark.timeout(600)
def test_one_of_two_verifiers_killed_for_good(work: Work, fleet: Fleet) -> None:
    """What it had goes on at the other, at once."""

    async def kill() -> None:
        await asyncio.sleep(1.0)
        fleet.verifiers[0].kill()

    assert 0 < asyncio.run(under_load(work, [fleet.drafters[0].address], kill))
    assert 1 <= fleet.drafters[0].daemon.metric("specfleet_drafter_verifier_switches_total")


@pytest.mark.skipif(not SOAK, reason="waits for keepalive; make soak")
@pytest.mark.timeout(600)
def test_a_frozen_verifier_is_left(work: Work, fleet: Fleet) -> None:
    """One of two stops answering and stays connected: found by keepalive, and its streams go on at the other. Thawed, it lets
    go of what nobody waits for any more."""

    async def freeze() -> None:
        await asyncio.sleep(1.0)
        fleet.verifiers[0].daemon.process.send_signal(signal.SIGSTOP)

    try:
        assert 0 < asyncio.run(under_load(work, [fleet.drafters[0].address], freeze))
    finally:
        fleet.verifiers[0].daemon.process.send_signal(signal.SIGCONT)
    time.sleep(2.0)
