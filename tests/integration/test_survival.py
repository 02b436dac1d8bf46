"""Real daemons that are killed, restarted and drained under load: every stream has exactly the ids of an undisturbed run.

`make test` runs a few streams and kills; `make soak` (SPECFLEET_SOAK=1) 32 streams and 20 kills.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from specfleet import AsyncClient, Reply, SamplingParams
from support.daemons import ANY_PORT, Daemon, running, wait_until_empty
from support.pair import DRAFT, TARGET, Reference, prompts

SOAK = "SPECFLEET_SOAK" in os.environ
STREAMS, TOKENS, KILLS = (32, 160, 20) if SOAK else (8, 96, 3)
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
    """A daemon on ports of its own, that can be started again after it was killed."""

    def __init__(self, stack: ExitStack, *arguments: str) -> None:
        self.arguments = (*arguments, "--listen", f"127.0.0.1:{free_port()}", "--metrics", ANY_PORT)
        self.daemon = Daemon(*self.arguments)
        stack.callback(lambda: self.daemon.stop(20.0))

    @property
    def address(self) -> str:
        return self.daemon.address

    def wait(self) -> None:
        self.daemon.wait_ready(READY_SECONDS)

    def kill(self) -> None:
        self.daemon.process.kill()
        self.daemon.process.wait()

    def start(self) -> None:
        self.daemon = Daemon(*self.arguments)

    async def restart(self, *, kill: bool = True) -> None:
        """Killed, or told to stop; then started, and ready."""
        if kill:
            self.kill()
        else:
            self.daemon.process.send_signal(signal.SIGTERM)
            assert 0 == await asyncio.to_thread(self.daemon.process.wait, 60.0)
        self.start()
        await asyncio.to_thread(self.wait)


def verifier(stack: ExitStack, *arguments: str) -> Restartable:
    return Restartable(stack, "verifier", "--model", str(TARGET), *POLICY, *arguments)


def drafter(stack: ExitStack, verifiers: Sequence[Restartable], model: str = str(DRAFT)) -> Restartable:
    where = [flag for one in verifiers for flag in ("--verifier", one.address)]
    return Restartable(stack, "drafter", "--model", model, *where)


def clean(*daemons: Restartable) -> None:
    """They stop with exit code 0, and said nothing of a bug."""
    for one in daemons:
        code = one.daemon.stop(30.0)
        assert 0 == code, one.daemon.output
        assert "Traceback" not in one.daemon.output, one.daemon.output


async def under_load(work: Work, targets: Sequence[str], disturb: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Streams again and again until the disturbance is over and one more round is whole. Returns how often one resumed."""
    async with AsyncClient(list(targets), timeout=300) as client:
        disturbance = asyncio.ensure_future(disturb())
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
def test_a_verifier_killed_again_and_again(work: Work) -> None:
    """kill -9 at random moments, restart on the same port: nobody notices but by the wait."""
    with ExitStack() as stack:
        one = verifier(stack)
        one.wait()
        beside = drafter(stack, [one])
        beside.wait()
        rng = np.random.default_rng(1)

        async def kills() -> None:
            for _ in range(KILLS):
                await asyncio.sleep(float(rng.uniform(0.3, 2.5)))
                await one.restart()

        resumes = asyncio.run(under_load(work, [beside.address], kills))
        assert resumes >= KILLS
        assert beside.daemon.metric("specfleet_drafter_resumes_total") == resumes
        wait_until_empty(one.daemon)
        clean(beside, one)


@pytest.mark.timeout(600)
def test_one_of_two_verifiers_killed_for_good(work: Work) -> None:
    """What it had goes on at the other, at once."""
    with ExitStack() as stack:
        both = [verifier(stack), verifier(stack)]
        for one in both:
            one.wait()
        beside = drafter(stack, both)
        beside.wait()

        async def kill() -> None:
            await asyncio.sleep(1.0)
            both[0].kill()

        assert 0 < asyncio.run(under_load(work, [beside.address], kill))
        assert 1 <= beside.daemon.metric("specfleet_drafter_verifier_switches_total")
        wait_until_empty(both[1].daemon)
        clean(beside, both[1])


@pytest.mark.timeout(1800)
def test_one_of_two_drafters_killed(work: Work) -> None:
    """The SDK goes on through its second target, another drafter, and later back to the first; then through a verifier."""
    with ExitStack() as stack:
        one = verifier(stack)
        one.wait()
        drafters = [drafter(stack, [one]), drafter(stack, [one], model="ngram")]
        for each in drafters:
            each.wait()

        async def kills() -> None:
            for number in range(KILLS if SOAK else 2):
                await asyncio.sleep(0.7)
                await drafters[number % 2].restart()
            await asyncio.sleep(0.7)
            for each in drafters:
                each.kill()

        targets = [each.address for each in drafters] + [one.address]
        assert 0 < asyncio.run(under_load(work, targets, kills))
        wait_until_empty(one.daemon)
        clean(one)


@pytest.mark.timeout(600)
def test_verifiers_restarted_one_after_the_other(work: Work) -> None:
    """SIGTERM under load, a second for what runs, then a new process: no generation fails, every exit code is 0."""
    with ExitStack() as stack:
        both = [verifier(stack, "--drain-seconds", "1"), verifier(stack, "--drain-seconds", "1")]
        for one in both:
            one.wait()
        beside = drafter(stack, both)
        beside.wait()

        async def roll() -> None:
            for one in both:
                await asyncio.sleep(0.7)
                await one.restart(kill=False)

        asyncio.run(under_load(work, [beside.address], roll))
        for one in both:
            wait_until_empty(one.daemon)
        clean(beside, *both)


def test_a_restart_beside_nobody_else_is_waited_for() -> None:
    """One verifier, told to stop while a long text runs and started again: the text is whole, and there was one resume."""
    with ExitStack() as stack:
        one = verifier(stack, "--drain-seconds", "0.2")
        one.wait()
        beside = stack.enter_context(running(Daemon(*_drafter_arguments(one))))
        sampling = SamplingParams(max_tokens=300, temperature=0.0, ignore_eos=True)

        async def main() -> Reply:
            async with AsyncClient(beside.address, timeout=120) as client:
                undisturbed = await client.generate("The old house", sampling)
                async with client.stream("The old house", sampling) as stream:
                    async for _ in stream:
                        if len(stream.token_ids) >= 20:
                            break
                    await one.restart(kill=False)
                    async for _ in stream:
                        pass
                    assert undisturbed.token_ids == stream.token_ids
                    assert undisturbed.text == stream.text
                    return stream.reply

        assert 1 <= asyncio.run(main()).speculation.resumes
        wait_until_empty(one.daemon)
        clean(one)


def _drafter_arguments(one: Restartable) -> tuple[str, ...]:
    where = ("--verifier", one.address, "--listen", ANY_PORT, "--metrics", ANY_PORT)
    return ("drafter", "--model", str(DRAFT), *where)
