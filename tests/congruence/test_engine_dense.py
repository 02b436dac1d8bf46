"""The fused decoder against the stock model: with plain products, as it runs on a GPU, and with packed ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from specfleet.core.step import StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine import EngineConfig, TorchEngine, model
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
