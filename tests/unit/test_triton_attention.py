"""The Triton kernel against attention spelled out, and against the engine's own `sdpa`, over many shapes. Without a GPU it
runs in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="the kernel is Triton's")

import support.attention
from specfleet.engine import triton_attention
from specfleet.engine.attention import AttentionContext, Look, _sdpa
from specfleet.engine.tiles import cut, most_tiles
from support.attention import PLAIN, RAGGED, TREES

ROOT = Path(__file__).resolve().parents[2]
DEVICE = torch.device("cpu" if triton_attention.interprets() else "cuda")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


class World(support.attention.World):
    """On the device of the kernel."""

    def __init__(self, sequences: list[tuple[int, int, int]], **sizes: Any) -> None:
        super().__init__(sequences, device=DEVICE, **sizes)

    def found(self, look: Look, splits: int | None = None) -> torch.Tensor:
        tiles = self.batch.tiles(triton_attention.tile_queries(self.batch.most_queries, self.share))
        return triton_attention.paged_attention(
            self.query, self.pool.keys[0], self.pool.values[0], tiles,
            scale=look.scale, window=look.window, softcap=look.softcap, splits=splits or 1,
        )  # fmt: skip

    def check(self, look: Look, splits: int | None = None) -> None:
        found = self.found(look, splits).double()
        assert torch.isfinite(found).all()
        assert (found - self.expected(look)).abs().max() <= TOLERANCE[self.dtype]


@pytest.mark.parametrize("sequences", [[(0, 1, 0)], [(200, 1, 0)], [(0, 70, 0)], [(64, 5, 0)] * 3, RAGGED, TREES])
@pytest.mark.parametrize("share", [1, 3, 4])
def test_every_query_sees_its_past_and_nothing_else(sequences: list[tuple[int, int, int]], share: int) -> None:
    """Decodes, verifications, prefills, whole and in pages of other sequences' noise, for grouped and ungrouped heads."""
    World(sequences, share=share).check(PLAIN)


@pytest.mark.parametrize("splits", [2, 3, 7])
def test_splitting_the_keys_changes_nothing(splits: int) -> None:
    """Parts that are empty, and parts of which a row sees nothing, included."""
    World(TREES + RAGGED).check(PLAIN, splits)
    World(TREES + RAGGED).check(Look(0.25, 20, None), splits)


@pytest.mark.parametrize("window", [1, 5, 20, 64, 100])
def test_windows(window: int) -> None:
    World(TREES + RAGGED, kv_heads=1).check(Look(0.3, window, None))


@pytest.mark.parametrize("dims", [(12, 12), (64, 64), (24, 40), (128, 128)])
def test_sizes_of_a_head(dims: tuple[int, int]) -> None:
    """Powers of two or not, values of another size than keys."""
    World(TREES, key_dim=dims[0], value_dim=dims[1], kv_heads=1).check(Look(dims[0] ** -0.5, None, None))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_dtypes_and_soft_caps(dtype: torch.dtype) -> None:
    World(TREES, dtype=dtype).check(Look(0.25, None, 3.0))


def test_more_heads_to_a_key_head_than_a_tile_usually_has_rows() -> None:
    World([(40, 3, 0), (7, 1, 0)], kv_heads=1, share=71).check(PLAIN)


def test_queries_may_be_a_view_into_something_wider() -> None:
    """As the fused decoder has them: one product for queries, keys and values."""
    world = World(RAGGED)
    wide = torch.randn(world.batch.tokens, 10, 16, device=DEVICE)
    wide[:, :6] = world.query
    world.query = wide[:, :6]
    world.check(PLAIN)


def test_it_agrees_with_the_engines_own() -> None:
    """The same batch through `sdpa`, which gathers and masks: the same to rounding."""
    for look in (PLAIN, Look(0.25, 20, None), Look(0.25, None, 5.0)):
        world = World(TREES + RAGGED, seed=4)
        expected = _sdpa(
            AttentionContext(world.batch, world.pool), world.query, world.pool.keys[0], world.pool.values[0], look
        )
        torch.testing.assert_close(world.found(look), expected, atol=1e-5, rtol=1e-5)


COMPILE = """
import re, subprocess, sys
from pathlib import Path
from typing import Any
from triton import backends
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from specfleet.engine import triton_attention as kernels

def build(kernel, types, constants, divisible=()):
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = [n for n in names if signature[n].startswith("*") or n in divisible]
    source = ASTSource(
        kernel, signature, {(names.index(n),): value for n, value in constants.items()},
        {(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    return compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": 3}).asm

pools = dict.fromkeys(("query", "keys", "values", "out"), "*bf16") | dict.fromkeys(("parts", "sums"), "*fp32")
index = dict.fromkeys(("table", "positions", "places", "pages"), "*i64") | {"scale": "fp32", "softcap": "fp32"}
found = build(
    kernels._attend, pools | index,
    dict(HEADS=64, SHARE=4, ROWS=32, KEYS=64, PAGE=16, KEY_DIM=64, VALUE_DIM=64, KEY_COLUMNS=64, VALUE_COLUMNS=64, WINDOW=100,
         CAPPED=True, SPLITS=3, UPCAST=False),
    ("query_token", "query_head", "key_slot", "key_head", "value_slot", "value_head"),
)
assert "cp.async.cg" in found["ptx"] and "mma" in found["ptx"], "no pipelined loads, no tensor cores"
Path(sys.argv[1]).write_bytes(found["cubin"])
tool = Path(backends.__file__).parent / "nvidia" / "bin" / "cuobjdump"
print(subprocess.run([tool, "--dump-resource-usage", sys.argv[1]], capture_output=True, text=True, check=True).stdout)
build(kernels._add_up, pools, dict(HEADS=64, VALUE_DIM=64, VALUE_COLUMNS=64, SPLITS=3, PARTS=4))
"""


def test_it_compiles_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """For compute capability 9.0, with loads in flight, on tensor cores, and with no register spilled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COMPILE, str(tmp_path / "kernel")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert 0 == done.returncode, done.stderr
    assert " STACK:0 " in done.stdout, done.stdout


def test_tiles_cover_each_token_once_and_none_crosses_a_sequence() -> None:
    random = np.random.default_rng(2)
    for _ in range(200):
        counts = random.integers(1, 40, random.integers(1, 9)).tolist()
        pages = random.integers(1, 9, len(counts)).tolist()
        queries = int(random.integers(1, 20))
        table = cut(counts, pages, queries)
        owner = np.repeat(np.arange(len(counts)), counts)
        seen = np.concatenate([np.arange(first, first + count) for first, count, _ in table])
        assert np.arange(sum(counts)).tolist() == seen.tolist()
        for first, count, page in table:
            assert 1 <= count <= queries
            assert (owner[first], sum(pages[: owner[first]])) == (owner[first + count - 1], page)
        assert len(table) <= most_tiles(len(counts), sum(counts), queries)
