"""What attention gathers from the KV pool: the asked pages, in memory that is used again."""

from __future__ import annotations

import torch

from specfleet.engine.kv_pool import Gathered, KVPool, LayerShape


def test_gathered_pages_are_the_pool_s_own() -> None:
    """Of layers of different shapes, in any order, a page twice included."""
    pool = KVPool([LayerShape(2, 8, 4), LayerShape(1, 16, 16)], 10, torch.float32, torch.device("cpu"))
    for layer in (*pool.keys, *pool.values):
        layer.copy_(torch.randn(layer.shape))

    for pages in (torch.tensor([3, 0, 9]), torch.tensor([7]), torch.tensor([1, 2, 3, 4, 5, 1])):
        for keys, values in zip(pool.keys, pool.values, strict=True):
            expected = keys[pages], values[pages]
            found = pool.gather(keys, values, pages)
            assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_what_was_gathered_makes_room_for_the_next() -> None:
    """As much as before, or less, takes no new memory."""
    gathered, source = Gathered(), torch.randn(20, 16, 2, 8)
    first = gathered.rows(source, torch.arange(8))

    second = gathered.rows(source, torch.arange(5, 10))

    assert first.data_ptr() == second.data_ptr()
    assert torch.equal(source[5:10], second)
