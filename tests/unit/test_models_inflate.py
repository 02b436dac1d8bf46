"""Inflated models cost more and compute the same."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM

from models.inflate import main
from models.inflation import inflate, is_inflated


def tiny(tied: bool = True, eps: float = 1e-6) -> LlamaForCausalLM:
    """A random Llama whose norms have weights of their own, so that a wrong scale shows."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        rms_norm_eps=eps,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


LARGER = [
    {"layers": 7},
    {"hidden": 96},
    {"hidden": 80},  # heads and feed-forward units do not divide evenly
    {"layers": 5, "hidden": 144},
    {"factor": 4.0},
    {"layers": 4, "hidden": 64, "heads": (16, 4), "intermediate": 96},  # one more query head to each key-value head
]


@pytest.mark.parametrize("size", LARGER, ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_same_logits_and_greedy_ids(size: dict, tied: bool) -> None:
    model = tiny(tied)
    larger = inflate(model, **size)
    assert larger.num_parameters() > model.num_parameters()
    ids = torch.randint(0, 97, (3, 40))
    with torch.inference_mode():
        torch.testing.assert_close(larger(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    options = {"do_sample": False, "max_new_tokens": 30, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(larger.generate(ids[:1, :5], **options), model.generate(ids[:1, :5], **options))


def test_large_epsilon_is_rescaled_too() -> None:
    model = tiny(eps=0.5)
    ids = torch.randint(0, 97, (1, 20))
    with torch.inference_mode():
        torch.testing.assert_close(inflate(model, hidden=192)(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_says_that_it_is_inflated_and_leaves_the_original_alone() -> None:
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    larger = inflate(model, layers=6)
    assert is_inflated(larger.config)
    assert not is_inflated(model.config)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_draws_no_random_numbers_of_the_caller() -> None:
    model = tiny()
    state = torch.get_rng_state()
    inflate(model, layers=6)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("size", "words"),
    [({"layers": 2}, "2 layers of 3"), ({"hidden": 32}, "width 32 of 48"), ({"factor": 2, "layers": 6}, "excludes")],
)
def test_refusals(size: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        inflate(tiny(), **size)


def test_command(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "small")
    out = tmp_path / "large"
    result = CliRunner().invoke(main, [str(tmp_path / "small"), str(out), "--layers", "5", "--hidden", "96"])
    assert result.exit_code == 0, result.output
    loaded = LlamaForCausalLM.from_pretrained(out)
    assert is_inflated(loaded.config)
    assert "INFLATED" in (out / "README.md").read_text()
    ids = torch.randint(0, 97, (1, 20))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_command_names_a_missing_model(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(tmp_path / "none"), str(tmp_path / "out"), "--factor", "2"])
    assert result.exit_code == 1
    assert "no model in" in result.output
