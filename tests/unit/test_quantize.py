"""Draft models in fewer bits: products near the true ones, whole models that agree with themselves, clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from drafter.config import DrafterConfig
from drafter.early_stop import state_file
from specfleet.core.errors import ConfigurationError, ModelLoadError
from specfleet.core.step import StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine import quantize
from specfleet.engine.engine import EngineConfig, TorchEngine
from specfleet.engine.model import load
from specfleet.engine.quantize import Int4Linear, Int8Linear
from support.pair import DRAFT

GREEDY = SamplingParams(temperature=0.0)


@pytest.mark.parametrize(("kind", "error"), [(Int8Linear, 0.03), (Int4Linear, 0.12)])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_near_the_true_ones(kind: type[Int8Linear | Int4Linear], error: float, bias: bool) -> None:
    """One layer or several stacked, with and without bias, added to something or not."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 96, bias), nn.Linear(64, 32, bias)]
    x, residual = torch.randn(5, 64), torch.randn(5, 128)
    with torch.inference_mode():
        own, true = kind(*layers), torch.cat([layer(x) for layer in layers], -1)
        assert (own.forward(x) - true).norm() < error * true.norm()
        assert torch.allclose(own.add_to(residual.clone(), x), residual + own.forward(x), atol=1e-5)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_a_quantized_model_mostly_writes_what_it_wrote(bits: str) -> None:
    """Over 64 places of one text the shipped drafter in fewer bits chooses as in float32 in most."""
    plain, small = (
        TorchEngine(EngineConfig(model=str(DRAFT), threads=1, kv_cache_tokens=1024, quantize=one))
        for one in (None, bits)
    )
    try:
        text = [5, 9, 11]
        plain.open(1, text)
        text += [one.tokens[0] for one in plain.extend_sync([StepItem(1, text, GREEDY)], 64)[0]]
        small.open(1, text)
        scored = small.step_sync([StepItem(1, text, GREEDY, draft=64, score=True)])[0]
        assert scored.matches >= 48
    finally:
        plain.shutdown()
        small.shutdown()


def test_what_cannot_be_is_said() -> None:
    """Unknown widths, inputs that do not divide into groups, and formats that are not float32 on the CPU."""
    with pytest.raises(ConfigurationError, match="'int2'; choose int8, int4 or auto"):
        TorchEngine(EngineConfig(model=str(DRAFT), quantize="int2"))

    class Odd(nn.Linear):
        dtype, device = torch.float32, torch.device("cpu")

    with pytest.raises(ConfigurationError, match="multiple of 32, and here one is 33; use int8"):
        quantize.check("int4", Odd(33, 8))
    Odd.dtype = torch.bfloat16
    with pytest.raises(ConfigurationError, match="from float32"):
        quantize.check("int8", Odd(32, 8))


def test_auto_is_int8_on_the_cpu_where_the_model_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose logits int8 would spoil keeps its own weights; a format that int8 cannot start from does, too."""
    assert "int8" == load(str(DRAFT), bits="auto").bits
    assert load(str(DRAFT), dtype="bfloat16", bits="auto").bits is None
    monkeypatch.setitem(quantize.TOLERANCE, "int8", 0.0)
    assert load(str(DRAFT), bits="auto").bits is None
    with pytest.raises(ModelLoadError, match="differ"):
        load(str(DRAFT), bits="int8")
    assert (None,) == quantize.choices("auto", torch.device("meta"))


def test_lookup_has_no_model_to_quantize_or_to_mix_with() -> None:
    """Said at the start, with the way out."""
    for wrong in ({"speculator": "hybrid"}, {"quantize": "int8"}):
        with pytest.raises(ValueError, match="ngram has no model"):
            DrafterConfig(model="ngram", **wrong)  # type: ignore[arg-type]


def test_a_pair_has_a_file_of_its_own() -> None:
    """Named for people, and told apart where only the folders differ; no name leads out of the folder."""
    one, other = (state_file(Path("kept"), f"{folder}/tiny-draft", "org/../target v2") for folder in "ab")
    assert one != other
    assert {Path("kept")} == {one.parent, other.parent}
    assert one.name.startswith("tiny-draft--target-v2-")
