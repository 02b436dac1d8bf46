"""Signals and mailboxes: asyncio's Event and Queue for one waiter."""

from __future__ import annotations

import asyncio

import pytest

from specfleet.core.mailbox import Mailbox, Signal


@pytest.mark.asyncio
async def test_items_come_in_the_order_in_which_they_were_put() -> None:
    """Whether the reader was there before them or came later."""
    box: Mailbox[int] = Mailbox()
    first = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    for item in (1, 2, 3):
        box.put(item)
    assert ([1, 2, 3], 0) == ([await first, await box.get(), await box.get()], len(box))


@pytest.mark.asyncio
async def test_a_reader_that_is_cancelled_loses_nothing() -> None:
    """Not even what had come when it was: the next reader finds it."""
    box: Mailbox[int] = Mailbox()
    reader = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    box.put(1)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    box.put(2)
    assert [1, 2] == [await box.get(), await box.get()]


@pytest.mark.asyncio
async def test_a_signal_wakes_its_waiter_and_stays_until_it_is_cleared() -> None:
    """Once set nobody waits; cleared, the next one does."""
    signal = Signal()
    waiter = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    assert not waiter.done()
    signal.set()
    await waiter
    await asyncio.wait_for(signal.wait(), 10)
    signal.clear()
    again = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    assert not again.done()
    again.cancel()
