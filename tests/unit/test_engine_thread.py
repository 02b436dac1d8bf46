"""The engine's thread: results and errors come back to whoever waits, and nobody has to."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import pytest

from specfleet.engine.thread import EngineThread


def test_calls_run_in_the_thread_in_order() -> None:
    """One at a time, as they were asked for."""
    thread, seen = EngineThread("engine"), list[tuple[int, str]]()

    def call(number: int) -> int:
        time.sleep(0.005 / (number + 1))
        seen.append((number, threading.current_thread().name))
        return number * number

    async def ask() -> list[int]:
        return await asyncio.gather(*(thread.run(call, number) for number in range(4)))

    assert [0, 1, 4, 9] == asyncio.run(ask())
    assert [(number, "engine") for number in range(4)] == seen
    thread.shutdown()


def test_errors_come_back() -> None:
    """And the next call is none the worse."""
    thread = EngineThread("engine")

    with pytest.raises(ZeroDivisionError):
        asyncio.run(thread.run(lambda: 1 / 0))
    assert "next" == asyncio.run(thread.run(str, "next"))
    thread.shutdown()


def test_who_stops_waiting_does_not_stop_the_call() -> None:
    """A cancelled wait leaves the call running, and the thread to others."""
    thread, began, go, done = EngineThread("engine"), threading.Event(), threading.Event(), list[str]()

    def call() -> None:
        began.set()
        go.wait(10)
        done.append("done")

    async def ask() -> str:
        waiting = asyncio.create_task(thread.run(call))
        await asyncio.to_thread(began.wait, 10)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go.set()
        return await thread.run(str, "next")

    assert "next" == asyncio.run(ask())
    assert ["done"] == done
    thread.shutdown()


def test_shutdown_waits_for_what_was_asked() -> None:
    """Also where the loop that asked is gone; twice is once."""
    thread, done = EngineThread("engine"), list[int]()

    def call() -> None:
        time.sleep(0.05)
        done.append(1)

    async def ask() -> None:
        asyncio.create_task(thread.run(call))  # noqa: RUF006 (it dies with the loop, which is the point)
        await asyncio.sleep(0)

    asyncio.run(ask())
    thread.shutdown()
    thread.shutdown()

    assert [1] == done


def test_a_forgotten_thread_ends() -> None:
    """Nobody has to shut it down to be able to leave."""
    thread = EngineThread("forgotten engine")
    del thread
    gc.collect()

    assert not any(one.name == "forgotten engine" for one in threading.enumerate())
