"""A Generator that counts, with faults on order; in this process, or as a process of its own (`python generation.py`)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from specfleet.core.errors import Overloaded, SpecfleetError, Unavailable
from specfleet.core.generation import Completed, Event, GenerationRequest, Started, Tokens
from specfleet.core.types import FinishReason, Mode, ModelInfo, Speculation, TokenKind, Usage
from specfleet.wire.server import Server

KINDS = (TokenKind.ACCEPTED, TokenKind.ACCEPTED, TokenKind.BONUS, TokenKind.TARGET, TokenKind.RECOVERED)
Fault = SpecfleetError | str


def text_of(count: int) -> str:
    """The text of the first `count` tokens: "0 1 2 "."""
    return "".join(f"{index} " for index in range(count))


class Counter:
    """Token i is the text "i ". `faults`: before token i, raise that error; "die" ends the process, "end" the stream,
    "hang" waits for ever. Each happens once."""

    def __init__(self, name: str = "counter", faults: Mapping[int, Fault] | None = None, delay: float = 0.0) -> None:
        self.name = name
        self.faults = dict(faults or {})
        self.delay = delay
        self.requests: list[GenerationRequest] = []
        self.closed = 0
        self.model_name = "counting"

    async def model(self) -> ModelInfo:
        return ModelInfo(self.model_name, 1000, b"digest", 512, (0,), "test", "fixed:4")

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        self.requests.append(request)
        try:
            yield Started(request.request_id, self.model_name, "fixed:4", "fake verifier", self.name)
            first = len(request.output_token_ids)
            fault = self.faults.pop(first, None)
            for index in range(first, request.sampling.max_tokens):
                if await self._meet(fault):
                    return
                await asyncio.sleep(self.delay)
                logprobs = (-float(index),) if request.sampling.logprobs else None
                text = f"{index} "
                # Taken before the token in front of it can be seen: whoever then leaves has left no fault to the next one.
                fault = self.faults.pop(index + 1, None)
                yield Tokens((index,), text, (KINDS[index % len(KINDS)],), logprobs, (len(text),))
            yield Tokens((), "!")
            speculation = Speculation()
            speculation.count(Mode.ROUND, drafted=4, accepted=3, committed=4)
            count = request.sampling.max_tokens
            yield Completed(FinishReason.LENGTH, Usage(len(request.prompt or ""), count, 1), speculation)
        finally:
            self.closed += 1

    async def _meet(self, fault: Fault | None) -> bool:
        """True where the stream is to end without a word."""
        if isinstance(fault, SpecfleetError):
            raise fault
        if fault == "die":
            await asyncio.sleep(0.1)  # what was said before is to leave the process
            os._exit(1)
        if fault == "hang":
            await asyncio.Event().wait()
        return fault == "end"


@asynccontextmanager
async def serving(generator: Counter, listen: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """The generator behind a real gRPC server of this process; its address."""
    server = Server()
    server.add_generation(generator)
    address = server.bind(listen)
    await server.start()
    await server.ready(True)
    try:
        yield address
    finally:
        await server.stop(0.0)


@contextmanager
def serving_process(*faults: str, delay: float = 0.0) -> Iterator[str]:
    """The same in a process of its own; `faults` like "3:die" or "2:unavailable"."""
    arguments = [sys.executable, __file__, "--delay", str(delay), *faults]
    paths = os.pathsep.join((*map(str, Path(__file__).resolve().parents[1:3]), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": paths}
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


async def _main(arguments: list[str]) -> None:
    delay, orders = float(arguments[1]), dict(order.split(":") for order in arguments[2:])
    known: dict[str, Fault] = {
        "unavailable": Unavailable("draining; try another server"),
        "overloaded": Overloaded("everybody is busy"),
    }
    faults = {int(index): known.get(fault, fault) for index, fault in orders.items()}
    async with serving(Counter(faults=faults, delay=delay)) as address:
        print(address, flush=True)  # noqa: T201
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
