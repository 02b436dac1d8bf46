"""The draft model of a machine with several users, call by call, as `drafter.batcher` runs it: whoever asks while it computes
is in the next call, and a call is as many steps in a row as everybody in it still needs."""

from __future__ import annotations

import asyncio
from functools import partial

from drafter.batcher import MAX_BURST
from drafter.pace import Middle
from drafter.speculators.model import GATHER_SECONDS
from scheduler.draft_time import DraftProfile
from simulator.clock import wake
from simulator.host import EventLoop


class Job:
    """A draft that somebody waits for."""

    __slots__ = ("done", "left", "made", "warming")

    def __init__(self, tokens: int, warming: float) -> None:
        self.left = tokens
        self.made = 0
        self.warming = warming
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class DraftEngine:
    def __init__(self, profile: DraftProfile, daemon: EventLoop, threads: float) -> None:
        self._profile = profile
        self._daemon = daemon
        self._threads = threads
        self._clock = asyncio.get_running_loop().time
        self._jobs: list[Job] = []
        self._busy = False
        self._step_seconds = Middle()

    @property
    def stride(self) -> int:
        """Guesses ahead to ask for at once, as `drafter.speculators.model` does."""
        step = self._step_seconds.value
        return max(1, min(MAX_BURST, int(GATHER_SECONDS / step))) if step else 1

    def draft(self, tokens: int, warming: float = 0.0) -> Job:
        """Wait for its `done`; cancelling that gives it up. `warming`: seconds that it takes longer."""
        job = Job(tokens, warming)
        self._jobs.append(job)
        if not self._busy:
            self._call()
        return job

    def _call(self) -> None:
        jobs = self._jobs = [job for job in self._jobs if not job.done.done()]
        self._busy = bool(jobs)
        if not jobs:
            return
        steps = min(MAX_BURST, *(job.left for job in jobs))
        seconds = steps * self._profile.at(len(jobs)) + sum(job.warming for job in jobs)
        self._daemon.call(seconds, self._threads, partial(self._made, tuple(jobs), steps, self._clock()))

    def _made(self, jobs: tuple[Job, ...], steps: int, began: float) -> None:
        now = self._clock()
        self._step_seconds.observe((now - began) / steps, now)
        for job in jobs:
            job.left -= steps
            job.made += steps
            job.warming = 0.0
            if not job.left:
                wake(job.done)
        self._call()
