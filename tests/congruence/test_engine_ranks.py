"""One model over two processes: the same token ids as in one, on the CPU with gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from specfleet.core.errors import ConfigurationError
from specfleet.engine import EngineConfig, TorchEngine
from specfleet.engine.parallel import Ranks, shard
from specfleet.engine.testing import save_tiny_model, stock_model
from support import ranks
from support.pair import ROOT, TARGET


def alone(folder: Path) -> dict[str, object]:
    torch.set_num_threads(1)
    engine = TorchEngine(EngineConfig(model=str(folder), kv_cache_tokens=1024))
    return {"texts": ranks.texts(engine, 24), "kv_heads": engine.model.layers[0].kv_heads // 2}


def test_two_ranks_write_what_one_writes(tmp_path: Path) -> None:
    """Greedy and seeded, with drafts, trees and a shared prefix: the shipped target through the fused decoder, a model with
    biases through buckets, one through transformers' own modules. Each rank holds half of the key-value heads."""
    biased, windowed = save_tiny_model(tmp_path / "b", "llama-untied"), save_tiny_model(tmp_path / "w", "gemma2")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--module", "support.ranks"]

    done = subprocess.run(
        [sys.executable, *launch, str(TARGET), f"{biased}:graphs", str(windowed)],
        capture_output=True, text=True, env=environment, cwd=ROOT, check=False,
    )  # fmt: skip

    assert 0 == done.returncode, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [alone(TARGET), alone(biased), alone(windowed)] == found


def test_what_cannot_be_shared_equally_is_said(tmp_path: Path) -> None:
    model = stock_model(save_tiny_model(tmp_path))
    with pytest.raises(ConfigurationError, match="2 key-value heads, which 3 ranks cannot share"):
        shard(model, Ranks(0, 3, "cpu", None))
    other = stock_model(save_tiny_model(tmp_path, "gpt-neox"))
    other.config.base_model_tp_plan = None
    with pytest.raises(ConfigurationError, match="no tensor-parallel plan"):
        shard(other, Ranks(0, 2, "cpu", None))
