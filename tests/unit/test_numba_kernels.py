"""The compiled kernels against the same spelled out, over many shapes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import silu

pytest.importorskip("numba", reason="the kernels are Numba's")

from specfleet.engine import attention, numba_kernels
from specfleet.engine.attention import AttentionContext, Look, paged_attention
from specfleet.engine.fuse_numba import Rows
from support.attention import PLAIN, RAGGED, TREES, World

ROOT = Path(__file__).resolve().parents[2]
Shape = list[tuple[int, int, int]]


def check(world: World, look: Look, most: int | None = None) -> None:
    """`most`: tokens of a sequence up to which the kernel does it, None for always."""
    heads = world.kv_heads * world.share
    out = np.full((world.batch.tokens, heads * world.key_dim), np.nan, np.float32)
    walk = world.batch.walk(sys.maxsize if most is None else most)
    keys, values = world.pool.arrays[0]
    query = world.query.reshape(world.batch.tokens, -1).numpy()
    numba_kernels.attend(query, heads, keys, values, walk.table, walk.pages, look.window or 0, look.scale, out)
    expected = world.expected(look).reshape(world.batch.tokens, -1).numpy()
    done = walk.table[0]
    assert np.abs(out[done] - expected[done]).max() <= 2e-6
    others = np.setdiff1d(np.arange(world.batch.tokens), done)
    assert np.isnan(out[others]).all()
    assert len(others) == sum(count for _, count, _ in world.sequences if most is not None and count > most)


@pytest.mark.parametrize("sequences", [[(0, 1, 0)], [(200, 1, 0)], [(0, 70, 0)], [(64, 5, 0)] * 3, RAGGED, TREES])
@pytest.mark.parametrize("share", [1, 3, 4])
def test_every_query_sees_its_past_and_nothing_else(sequences: Shape, share: int) -> None:
    """Decodes, verifications, prefills, whole and in pages of other sequences' noise, for grouped and ungrouped heads."""
    check(World(sequences, share=share), PLAIN)


@pytest.mark.parametrize("window", [1, 5, 20, 64, 100])
def test_windows(window: int) -> None:
    check(World(TREES + RAGGED, kv_heads=1), Look(0.3, window, None))


@pytest.mark.parametrize("dim", [12, 16, 32, 48, 64, 80, 128])
def test_sizes_of_a_head(dim: int) -> None:
    check(World(TREES, key_dim=dim, value_dim=dim), Look(dim**-0.5, None, None))


def test_scores_of_any_size() -> None:
    """A softmax is of differences: neither overflow nor a sum of nothing."""
    world = World(RAGGED)
    world.query *= 1e4
    check(world, Look(1.0, None, None))


def test_sequences_with_many_tokens_are_left_to_others() -> None:
    check(World(RAGGED + TREES), PLAIN, most=9)


@pytest.mark.parametrize("window", [None, 20])
def test_the_back_end_does_both(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with many tokens in groups of `sdpa`, together with the others in one result."""
    monkeypatch.setattr(attention, "_WALKED", 8)
    world, look = World(RAGGED + TREES, seed=5), Look(0.25, window, None)
    expected = world.expected(look)
    context = AttentionContext(world.batch, world.pool, "numba")
    stored = [pool[0].flatten(0, 1)[world.batch.slots] for pool in (world.pool.keys, world.pool.values)]
    found = paged_attention(context, 0, world.query, *stored, look)
    assert (found.double() - expected).abs().max() <= 2e-6


def test_a_result_does_not_depend_on_who_else_is_in_the_step() -> None:
    """To the last bit."""
    alone = World([(129, 4, 0)])
    crowd = World([(129, 4, 0), (0, 1, 0), (70, 5, 0)])
    crowd.query[:4] = alone.query
    span, theirs = alone.batch.spans[0], crowd.batch.spans[0]
    for mine, pool in ((alone.pool.keys[0], crowd.pool.keys[0]), (alone.pool.values[0], crowd.pool.values[0])):
        pool[list(theirs.pages)] = mine[list(span.pages)]
    found = []
    for world in (alone, crowd):
        out = np.empty((world.batch.tokens, 96), np.float32)
        walk = world.batch.walk(sys.maxsize)
        query = world.query.reshape(world.batch.tokens, -1).numpy()
        numba_kernels.attend(query, 6, *world.pool.arrays[0], walk.table, walk.pages, 0, 0.25, out)
        found.append(out[:4])
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("rows", [1, 5])
def test_norm_and_gate_are_torchs(rows: int) -> None:
    torch.manual_seed(rows)
    x, weight, out = torch.randn(rows, 48) * 3.0, torch.rand(48), np.empty((rows, 48), np.float32)
    numba_kernels.normalize(x.numpy(), weight.numpy(), 1e-6, out)
    expected = torch.nn.functional.rms_norm(x.double(), (48,), weight.double(), 1e-6)
    torch.testing.assert_close(torch.from_numpy(out).double(), expected, rtol=1e-6, atol=1e-6)

    both, gated = torch.cat([torch.linspace(-200, 200, 160).repeat(rows, 1), torch.randn(rows, 160)], 1), Rows(160)
    numba_kernels.gate(both.numpy(), gated.of(rows)[1])
    expected = silu(both[:, :160].double()) * both[:, 160:].double()
    torch.testing.assert_close(gated.of(rows)[0].double(), expected, rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_what_is_not_finite_is_seen(where: str) -> None:
    """The engine refuses such a step: no kernel may lose it on the way."""
    world = World([(20, 2, 0)])
    tensor = {"query": world.query, "key": world.pool.keys[0], "value": world.pool.values[0]}[where]
    tensor.fill_(torch.nan)
    out = np.zeros((2, 96), np.float32)
    walk, query = world.batch.walk(sys.maxsize), world.query.reshape(2, -1).numpy()
    numba_kernels.attend(query, 6, *world.pool.arrays[0], walk.table, walk.pages, 0, 0.25, out)
    assert np.isnan(out).all()
    x = np.full((1, 48), np.nan, np.float32)
    numba_kernels.normalize(x, np.ones(48, np.float32), 1e-6, x)
    assert np.isnan(x).all()
    both, gated = np.full((1, 8), np.nan, np.float32), np.zeros((1, 4), np.float32)
    numba_kernels.gate(both, gated)
    assert np.isnan(gated).all()


def test_memory_for_rows_grows_and_stays() -> None:
    held = Rows(3)
    few, array = held.of(2)
    array[:] = 1.0
    assert few.shape == (2, 3) and few.eq(1.0).all()
    assert held.of(2)[0].data_ptr() == few.data_ptr()
    many = held.of(5)[0]
    assert many.shape == (5, 3) and held.of(2)[0].data_ptr() == many.data_ptr()


KERNELS_ALONE = """
import sys, types
sys.modules["specfleet.engine"] = package = types.ModuleType("specfleet.engine")
package.__path__ = ["specfleet/engine"]
"""
"""The package's own beginning imports transformers, which takes five times as long as all that is tested here."""


def test_where_machine_code_cannot_be_kept_it_is_made_anew() -> None:
    """Installed read-only, for a user without a home."""
    code = """
from numba.core import caching
caching.CacheImpl._locator_classes = []
import numpy as np
from specfleet.engine import numba_kernels
x = np.full((1, 4), 3.0, np.float32)
numba_kernels.normalize(x, np.ones(4, np.float32), 0.0, x)
assert x.tolist() == [[1.0] * 4], x
print(numba_kernels.normalize.stats.cache_path)
"""
    program = [sys.executable, "-c", KERNELS_ALONE + code]
    found = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "None"


def test_kept_machine_code_is_of_what_it_calls_too(tmp_path: Path) -> None:
    """The gate's exponential is in another file."""
    shutil.copytree(ROOT / "specfleet", tmp_path / "specfleet", ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import numpy as np
from specfleet.engine import numba_kernels
out = np.empty((1, 1), np.float32)
numba_kernels.gate(np.ones((1, 2), np.float32), out)
print(out[0, 0], sum(numba_kernels.gate.stats.cache_hits.values()))
"""

    def gated() -> tuple[float, int]:
        program = [sys.executable, "-c", KERNELS_ALONE + code]
        found = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=True)
        value, hits = found.stdout.split()
        return float(value), int(hits)

    first, again = gated(), gated()
    assert first == (pytest.approx(1 / (1 + np.exp(-1.0))), 0) and again == (first[0], 1)
    called = tmp_path / "specfleet" / "engine" / "attend_numba.py"
    called.write_text(called.read_text().replace("+ r + _f(1.0)", "+ r + _f(2.0)"))
    value, hits = gated()
    assert value < 0.9 * first[0] and not hits
