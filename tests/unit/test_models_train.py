"""The training scripts: schedule, resume, deepening, losses, on a model small enough for milliseconds."""

from pathlib import Path

import click
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.train.corpus import Corpus
from models.train.evaluate import agreement, losses
from models.train.loop import Plan, Trainer, draft_loss, target_loss
from models.train.surgery import deepen, fresh

CPU = torch.device("cpu")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    rng = np.random.default_rng(5)
    for domain in ("story", "math", "code"):
        for split in ("train", "val"):
            np.minimum(rng.geometric(0.2, 2000), 49).astype("<u2").tofile(tmp_path / f"{domain}.{split}.bin")
    return Corpus(tmp_path)


def tiny(layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(3)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
    )


def trainer(corpus: Corpus, run: Path, steps: int) -> tuple[Trainer, LlamaForCausalLM]:
    model = tiny()
    plan = Plan(steps=steps, batch=4, micro=2, length=16, decay=0.0)
    return Trainer(model, plan, run, lambda rng: corpus.batch(plan.batch, plan.length, rng)), model


def test_rate_rises_stays_and_falls() -> None:
    plan = Plan(steps=1000, rate=1.0, warmup=20, decay=0.4)
    assert plan.rate_at(0, 0.0) == pytest.approx(0.05)
    assert plan.rate_at(500, 0.0) == 1.0
    assert plan.rate_at(800, 0.0) == pytest.approx(0.5)
    assert plan.rate_at(1000, 0.0) == 0.0


def test_decay_follows_the_clock_down_to_the_floor() -> None:
    plan = Plan(steps=10**6, rate=1.0, decay=0.5, floor=0.2, minutes=10)
    assert plan.rate_at(100, 450.0) == pytest.approx(0.6)
    assert plan.rate_at(100, 600.0) == pytest.approx(0.2)
    assert plan.progress(100, 700.0) == 1.0


def test_resumed_run_equals_an_uninterrupted_one(corpus: Corpus, tmp_path: Path) -> None:
    whole, expected = trainer(corpus, tmp_path / "whole", 6)
    whole.train(target_loss(expected, CPU))
    first, model = trainer(corpus, tmp_path / "parts", 3)
    first.train(target_loss(model, CPU))
    second, model = trainer(corpus, tmp_path / "parts", 6)
    assert second.resume()
    assert second.step == 3
    second.train(target_loss(model, CPU))
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


def test_training_lowers_the_loss(corpus: Corpus, tmp_path: Path) -> None:
    one, model = trainer(corpus, tmp_path / "run", 30)
    before = losses(model, corpus, 4)
    one.train(target_loss(model, CPU))
    assert sum(losses(model, corpus, 4).values()) < sum(before.values())


def test_deepened_model_computes_the_same_and_can_learn() -> None:
    model = tiny(3).eval()
    deeper = deepen(model, 7).eval()
    ids = torch.randint(0, 50, (2, 12))
    torch.testing.assert_close(deeper(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    deeper(ids, labels=ids).loss.backward()
    zero = [layer for layer in deeper.model.layers if not layer.self_attn.o_proj.weight.any()]
    assert len(zero) == 4
    assert all(layer.mlp.down_proj.weight.grad.any() for layer in zero)


def test_a_drafter_equal_to_its_target_has_no_loss_and_full_acceptance(corpus: Corpus) -> None:
    model = tiny()
    windows = corpus.batch(4, 16, np.random.default_rng(1))
    assert draft_loss(model, model, CPU, 0.3)(windows).item() == pytest.approx(0.0, abs=1e-5)
    assert all(pair == pytest.approx((1.0, 1.0), abs=1e-5) for pair in agreement(model, model, corpus, 4).values())


def test_fresh_model_shares_the_vocabulary() -> None:
    model = fresh(64, 1, 2, 1, 96, tiny().config)
    assert model.config.vocab_size == 50
    assert model.config.num_hidden_layers == 1


def test_missing_corpus_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match=r"no corpus file .*story\.train\.bin; say --corpus FOLDER"):
        Corpus(tmp_path)
