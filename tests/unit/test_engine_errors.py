"""What the engine refuses, in one clear line, before anything is computed; and what it does when a model misbehaves."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch

from specfleet.core.errors import (
    ConfigurationError,
    InternalError,
    InvalidRequest,
    ModelLoadError,
    Overloaded,
    PromptTooLong,
    SpecfleetError,
)
from specfleet.core.step import DraftDistribution, StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine import EngineConfig, TorchEngine, attention
from specfleet.engine.fuse import FusedDecoder
from specfleet.engine.model import load
from specfleet.engine.testing import VOCABULARY, save_tiny_model, stock_model

GREEDY = SamplingParams(temperature=0)


def engine_with(folder: Path, prompt: list[int], kv_cache_tokens: int = 256, **overrides: int) -> TorchEngine:
    """An engine with sequence 1 open and `prompt` computed."""
    save_tiny_model(folder, "llama", **overrides)
    engine = TorchEngine(EngineConfig(model=str(folder), kv_cache_tokens=kv_cache_tokens, threads=1))
    engine.open(1, prompt)
    engine.step_sync([StepItem(1, prompt, GREEDY)])
    return engine


def assert_refused(engine: TorchEngine, items: list[StepItem], error: type[SpecfleetError], match: str) -> None:
    lengths = {item.sequence: engine.length(item.sequence) for item in items}
    pages, steps = engine.free_pages, engine.counters.steps
    with pytest.raises(error, match=match):
        engine.step_sync(items)
    assert {sequence: engine.length(sequence) for sequence in lengths} == lengths
    assert (engine.free_pages, engine.counters.steps) == (pages, steps)
    engine.check_integrity()


def test_out_of_pages_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    """A step that does not fit names what it needs and what is free; a smaller one still runs."""
    engine = engine_with(tmp_path, [1] * 20, kv_cache_tokens=64)
    engine.open(2, [2] * 40)

    items = [StepItem(1, [3] * 13, GREEDY), StepItem(2, [2] * 40, GREEDY)]
    assert_refused(engine, items, Overloaded, "needs 4 KV pages and 2 of 4 are free")
    assert len(engine.step_sync(items[:1])) == 1


def test_a_row_of_steps_that_fails_midway_leaves_nothing_behind(tmp_path: Path) -> None:
    """`extend` that runs out of pages after some steps takes those back too."""
    engine = engine_with(tmp_path, [1] * 60, kv_cache_tokens=64)

    with pytest.raises(Overloaded):
        engine.extend_sync([StepItem(1, [2], GREEDY)], 10)

    assert (engine.length(1), len(engine.extend_sync([StepItem(1, [2], GREEDY)], 4)[0])) == (60, 4)
    engine.check_integrity()


@pytest.mark.parametrize(
    ("item", "match"),
    [
        (StepItem(1, [], GREEDY), "0 tokens with 0 drafted"),
        (StepItem(1, [1, 2], GREEDY, draft=2), "2 tokens with 2 drafted"),
        (StepItem(1, [VOCABULARY], GREEDY), "token ids must be from 0 to 96"),
        (StepItem(1, [-1], GREEDY), "token ids must be from 0 to 96"),
        (StepItem(1, [1, 2], GREEDY, draft=1, sample=False), "need sample=True"),
        (StepItem(1, [1, 2], SamplingParams(), draft=1), "need as many distributions q, not 0"),
        (StepItem(1, [1, 2], SamplingParams(), draft=1, q=[DraftDistribution((99,), (1.0,))]), "token ids of q"),
        (StepItem(1, [1, 2], SamplingParams(), draft=1, q=[DraftDistribution((9,), ())]), "1 ids and 0 probabilities"),
    ],
)
def test_items_that_cannot_be_are_refused(item: StepItem, match: str, tmp_path: Path) -> None:
    """Each is named with its sequence and the limit."""
    assert_refused(engine_with(tmp_path, [1, 2, 3]), [item], InvalidRequest, f"sequence 1: .*{match}")


def test_a_sequence_cannot_be_twice_in_a_step(tmp_path: Path) -> None:
    """Its second item could not know what the first accepts."""
    item = StepItem(1, [1], GREEDY)
    assert_refused(engine_with(tmp_path, [1, 2]), [item, item], InvalidRequest, "twice in one step")


def test_the_context_length_is_a_limit(tmp_path: Path) -> None:
    """Tokens beyond the model's positions are refused with both lengths."""
    engine = engine_with(tmp_path, [1] * 30, max_position_embeddings=32)
    assert_refused(engine, [StepItem(1, [1, 2, 3], GREEDY)], PromptTooLong, "33 tokens .* context of 32")


@pytest.mark.parametrize("beside", [GREEDY, SamplingParams(seed=2)], ids=["greedy", "seeded"])
def test_logits_that_are_not_finite_name_the_sequences(beside: SamplingParams, tmp_path: Path) -> None:
    """A model gone NaN is our error; every sequence of the step is as it was and the engine goes on."""
    engine = engine_with(tmp_path, [1, 2, 3])
    engine.open(2, [4])
    assert isinstance(engine.model.run, FusedDecoder)
    weights = engine.model.run.embedding
    before = weights[5].clone()
    weights[5] = float("nan")
    items = [StepItem(1, [9], beside), StepItem(2, [4, 5], SamplingParams(seed=1))]

    assert_refused(engine, items, InternalError, "not finite for sequences 2$")
    weights[5] = before
    assert len(engine.step_sync(items)) == 2


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ("./nowhere", "model path './nowhere' does not exist"),
        ("/nowhere/at/all", "model path '/nowhere/at/all' does not exist"),
        ("~/nowhere-at-all", "model path '~/nowhere-at-all' does not exist"),
        ("some/deep/path", "model path 'some/deep/path' does not exist"),
    ],
)
def test_a_path_that_does_not_exist_is_never_asked_of_the_hub(
    model: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names the path and the way out, and no connection is opened."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(ModelLoadError, match=match):
        load(model)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    """No config.json, a file in place of a folder, no weights, a broken or an unknown configuration: one line each."""
    with pytest.raises(ModelLoadError, match=r"without config\.json"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="is a file"):
        load(str(tmp_path / "config.json"))
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-architecture"}))
    with pytest.raises(ModelLoadError, match=r"cannot be loaded: .*no-such-architecture"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8, "vocab_size": 8}))
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1}, "not supported: 0 attention calls"),
        ({"model_type": "bloom", "hidden_size": 16, "n_layer": 1, "n_head": 2}, "not supported|keyword"),
        (
            {
                "model_type": "gpt_oss",
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "head_dim": 8,
                "num_experts_per_tok": 1,
            },
            "asks its attention for s_aux",
        ),
    ],
)
def test_models_that_would_be_computed_wrongly_are_refused(
    settings: dict[str, object], match: str, tmp_path: Path
) -> None:
    """No attention at all, attention biases, attention sinks: refused when loaded, never silently wrong."""
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {
        "vocab_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 16,
        "num_local_experts": 2,
    }
    config = AutoConfig.for_model(**{**small, **settings})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)

    with pytest.raises(ModelLoadError, match=match):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"device": "tpu9"}, "device 'tpu9' is unknown"),
        ({"device": "cuda:7"}, "device 'cuda:7'"),
        ({"dtype": "int3"}, "dtype 'int3' is unknown; choose auto, float32"),
        ({"attention": "magic"}, "attention backend 'magic' is unknown; choose sdpa, numba, triton, varlen"),
        ({"attention": "varlen"}, "varlen needs a CUDA device"),
        ({"kv_cache_tokens": 3}, "kv_cache_tokens is 3, must be at least 16"),
        ({"threads": 0}, "threads is 0, must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, object], match: str, tmp_path: Path) -> None:
    """Each error names the value and the way out."""
    save_tiny_model(tmp_path, "llama")
    with pytest.raises(ConfigurationError, match=match):
        TorchEngine(EngineConfig(model=str(tmp_path), **change))


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "gemma2"])
def test_a_processor_takes_the_compiled_kernels_where_they_can_be(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for soft caps, not in bfloat16, not on many threads, and not without Numba: then torch's operations."""
    folder = str(save_tiny_model(tmp_path, family))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert load(folder).backend == ("sdpa" if family == "gemma2" else "numba")
        assert load(folder, dtype="bfloat16").backend == "sdpa"
        if family == "gemma2":
            with pytest.raises(
                ConfigurationError, match="no logit softcap, which this model does not have; choose sdpa"
            ):
                load(folder, backend="numba")
        torch.set_num_threads(8)
        assert load(folder).backend == "sdpa"
        torch.set_num_threads(2)
        monkeypatch.setattr(attention, "missing", lambda module: module == "numba")
        assert load(folder).backend == "sdpa"
        with pytest.raises(ConfigurationError, match="needs Numba: pip install numba; or choose sdpa"):
            load(folder, backend="numba")
    finally:
        torch.set_num_threads(before)


def test_what_a_loaded_model_says_of_itself(tmp_path: Path) -> None:
    """Vocabulary, context, end-of-text ids, parameters and key/value shapes come from the model."""
    engine = engine_with(tmp_path, [1])
    model = engine.model

    assert (model.vocabulary_size, model.context_length, model.eos_token_ids) == (VOCABULARY, 512, (0,))
    assert [(layer.kv_heads, layer.key_dim) for layer in model.layers] == [(2, 12)] * 3
    assert model.parameters == sum(p.numel() for p in stock_model(tmp_path).parameters())
    assert (engine.page_size, engine.total_pages, engine.used_pages) == (16, 16, 1)
