"""The fused decoder against the stock model: with plain products, as it runs on a GPU, and with packed ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from specfleet.core.step import StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine import EngineConfig, TorchEngine, model
from specfleet.engine.device import last_cache_bytes
from specfleet.engine.fuse import DenseLinear, FusedDecoder, PackedLinear
from specfleet.engine.testing import VOCABULARY, save_tiny_model, stock_logits, stock_model

GREEDY = SamplingParams(temperature=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "llama-untied", "qwen2-window", "qwen3"])
@pytest.mark.parametrize("product", [DenseLinear, PackedLinear])
def test_logits_are_the_stock_models(
    family: str, dtype: str, product: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-5 in float32. In bfloat16 as far from float32's as the stock model's own are, and a little."""
    torch.set_num_threads(1)
    packs = product is PackedLinear
    if packs and dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor does not multiply bfloat16")
    monkeypatch.setattr(model, "can_pack", lambda module: packs)
    folder = save_tiny_model(tmp_path, family)
    text = np.random.default_rng(0).integers(0, VOCABULARY, 60).tolist()
    expected, rounded = stock_model(folder), stock_model(folder).bfloat16()

    engine = TorchEngine(EngineConfig(model=str(folder), dtype=dtype, kv_cache_tokens=256))
    engine.open(0, text)
    found = [engine.forward([StepItem(0, text[at : at + 20], GREEDY, draft=19)]) for at in range(0, 60, 20)]

    assert isinstance(engine.model.run, FusedDecoder) and isinstance(engine.model.run.head, product)
    logits, true = torch.cat(found), stock_logits(expected, text)
    off = (logits - true).abs().max()
    assert off <= (1e-5 if dtype == "float32" else 2.0 * (stock_logits(rounded, text) - true).abs().max())


@pytest.mark.parametrize("tokens", [1, 2, 3, 5])
def test_rows_that_fill_up_a_small_step_change_nothing(tokens: int, tmp_path: Path) -> None:
    """Where weights come from memory a step has at least four rows; logits are those of the step alone."""
    torch.set_num_threads(1)
    folder = save_tiny_model(tmp_path, "llama")
    text = list(range(1, 31))
    found = []
    for least in (1, 4):
        engine = TorchEngine(EngineConfig(model=str(folder), dtype="float32", kv_cache_tokens=256))
        assert isinstance(engine.model.run, FusedDecoder)
        engine.model.run.least_rows = least
        engine.open(0, text)
        engine.step_sync([StepItem(0, text[:20], GREEDY)])
        found.append(engine.forward([StepItem(0, text[20 : 20 + tokens], GREEDY, draft=tokens - 1)]).clone())

    assert found[0].shape == found[1].shape == (tokens, VOCABULARY)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_least_rows_go_by_what_the_cache_holds(tmp_path: Path) -> None:
    """As Linux says it; nothing is said of it elsewhere."""
    (tmp_path / "size").write_text("32768K\n")

    assert 32 * 2**20 == last_cache_bytes(tmp_path / "size")
    assert 0 == last_cache_bytes(tmp_path / "nowhere")
