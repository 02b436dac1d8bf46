"""Train the pair that ships with specfleet.

    python -m models.train target --from ../shared/models/tiny-target --out models/runs/first --steps 3000
    python -m models.train deepen --from models/runs/first/model --out models/runs/deep --layers 16
    python -m models.train target --from models/runs/deep/model --out models/runs/final --steps 1500
    python -m models.train new --like models/runs/final/model --out models/runs/fresh --layers 2
    python -m models.train target --from models/runs/fresh --out models/runs/text --rate 4e-3
    python -m models.train draft --target models/runs/final/model --from models/runs/text/model --out models/runs/draft
    python -m models.train export models/runs/final/model models/tiny-target
    python -m models.train export models/runs/draft/model models/tiny-draft
    python -m models.train evaluate

Every command goes on where it was interrupted. On a GPU all of it takes minutes, on two CPU cores hours.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.train.corpus import MIXTURE, Corpus
from models.train.evaluate import agreement, greedy_loop, losses, step_costs
from models.train.loop import Plan, Trainer, draft_loss, target_loss
from models.train.surgery import deepen as deepened
from models.train.surgery import fresh

HERE = Path(__file__).resolve().parents[1]
PROMPTS = HERE / "prompts.txt"
FOLDER = click.Path(path_type=Path)
corpus_option = click.option(
    "--corpus", type=FOLDER, default=HERE.parents[1] / "shared" / "corpus", help="Folder with the token files."
)

mix_option = click.option(
    "--mix",
    type=(float, float, float),
    default=tuple(MIXTURE.values()),
    show_default=True,
    help="Shares of story, math and code in the training windows.",
)


def _load(path: Path) -> Any:
    if not (path / "config.json").exists():
        raise click.ClickException(f"no model in {path}; say a folder with config.json and weights")
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(_device())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _save(model: Any, tokenizer_from: Path, out: Path) -> None:
    """A Hugging Face folder with the tokenizer and chat template of another."""
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (tokenizer_from / name).exists():
            shutil.copyfile(tokenizer_from / name, out / name)
    for path in out.glob("*.safetensors"):
        path.chmod(0o644)  # written for the owner alone


def _run(model: Any, plan: Plan, out: Path, corpus: Corpus, loss: Any, tokenizer_from: Path) -> None:
    trainer = Trainer(model, plan, out, lambda rng: corpus.batch(plan.batch, plan.length, rng))
    if trainer.resume():
        click.echo(f"going on at step {trainer.step} of {plan.steps}")
    trainer.train(loss)
    _save(model, tokenizer_from, out / "model")
    click.echo(f"validation loss {_row(losses(model, corpus))}; model in {out / 'model'}")


def _mixed(corpus: Path, mix: tuple[float, float, float]) -> Corpus:
    if abs(sum(mix) - 1) > 1e-6:
        raise click.ClickException(f"the shares of --mix are {sum(mix):g} together, not 1")
    return Corpus(corpus, dict(zip(MIXTURE, mix, strict=True)))


def _row(values: dict[str, float]) -> str:
    return " / ".join(f"{name} {value:.3f}" for name, value in values.items())


@click.group()
def main() -> None:
    """Train, deepen, distil and evaluate the pair that ships with specfleet."""
    torch.manual_seed(1)


@main.command()
@click.option("--from", "source", type=FOLDER, required=True, help="Model folder to go on from.")
@click.option("--out", type=FOLDER, required=True, help="Folder of this run: checkpoint, plan, model.")
@click.option("--steps", default=3000, show_default=True)
@click.option("--rate", default=2e-3, show_default=True)
@click.option("--decay", default=0.4, show_default=True, help="Share of the run over which the rate falls.")
@click.option("--floor", default=0.0, show_default=True, help="Rate at the end of the decay.")
@click.option("--minutes", type=float, help="End after this much training; the decay then follows the clock.")
@mix_option
@click.option("--micro", default=8, show_default=True, help="Sequences in one forward pass.")
@click.option("--seed", default=1, show_default=True)
@corpus_option
def target(
    source: Path,
    out: Path,
    steps: int,
    rate: float,
    decay: float,
    floor: float,
    minutes: float | None,
    mix: tuple[float, float, float],
    micro: int,
    seed: int,
    corpus: Path,
) -> None:
    """Train the target on the corpus, from an earlier one onwards."""
    model = _load(source)
    plan = Plan(steps=steps, rate=rate, decay=decay, floor=floor, minutes=minutes, micro=micro, seed=seed)
    _run(model, plan, out, _mixed(corpus, mix), target_loss(model, _device()), source)


@main.command()
@click.option("--from", "source", type=FOLDER, required=True)
@click.option("--out", type=FOLDER, required=True)
@click.option("--layers", default=16, show_default=True)
def deepen(source: Path, out: Path, layers: int) -> None:
    """Insert layers that compute nothing yet."""
    _save(deepened(_load(source), layers), source, out / "model")


@main.command()
@click.option("--like", type=FOLDER, required=True, help="Model whose vocabulary and tokenizer it gets.")
@click.option("--out", type=FOLDER, required=True)
@click.option("--hidden", default=256, show_default=True, help="Width; a head is 64 wide, two heads share keys.")
@click.option("--layers", default=1, show_default=True)
@click.option("--feed-forward", default=1024, show_default=True)
def new(like: Path, out: Path, hidden: int, layers: int, feed_forward: int) -> None:
    """Write an untrained model, to begin a drafter with."""
    heads = hidden // 64
    _save(fresh(hidden, layers, heads, max(1, heads // 2), feed_forward, _load(like).config), like, out)


@main.command()
@click.option("--target", "target_path", type=FOLDER, required=True, help="Trained target.")
@click.option("--from", "source", type=FOLDER, required=True, help="Drafter to go on from (see `new`).")
@click.option("--out", type=FOLDER, required=True)
@click.option("--steps", default=2000, show_default=True)
@click.option("--rate", default=3e-3, show_default=True)
@click.option("--decay", default=0.5, show_default=True)
@click.option("--minutes", type=float, help="End after this much training; the decay then follows the clock.")
@click.option("--overlap", default=0.3, show_default=True, help="Weight of total variation beside KL.")
@mix_option
@click.option("--seed", default=1, show_default=True)
@corpus_option
def draft(
    target_path: Path,
    source: Path,
    out: Path,
    steps: int,
    rate: float,
    decay: float,
    minutes: float | None,
    overlap: float,
    mix: tuple[float, float, float],
    seed: int,
    corpus: Path,
) -> None:
    """Distil a drafter from the target."""
    teacher = _load(target_path).eval().requires_grad_(False)
    model = _load(source)
    plan = Plan(steps=steps, rate=rate, decay=decay, minutes=minutes, seed=seed)
    _run(model, plan, out, _mixed(corpus, mix), draft_loss(model, teacher, _device(), overlap), target_path)


@main.command()
@click.argument("source", type=FOLDER)
@click.argument("out", type=FOLDER)
def export(source: Path, out: Path) -> None:
    """Write a trained model as it ships: bfloat16."""
    _save(_load(source).to(torch.bfloat16), source, out)
    size = sum(path.stat().st_size for path in out.iterdir())
    click.echo(f"{out}: {size / 1e6:.1f} MB")


@main.command()
@click.option("--target", "target_path", type=FOLDER, default=HERE / "tiny-target", show_default=True)
@click.option("--draft", "draft_path", type=FOLDER, default=HERE / "tiny-draft", show_default=True)
@corpus_option
def evaluate(target_path: Path, draft_path: Path, corpus: Path) -> None:
    """Print every figure that models/README.md gives."""
    target_model, drafter = _load(target_path).eval(), _load(draft_path).eval()
    data = Corpus(corpus)
    click.echo(f"parameters        target {target_model.num_parameters():,}, drafter {drafter.num_parameters():,}")
    click.echo(f"validation loss   target {_row(losses(target_model, data))}")
    click.echo(f"                  drafter {_row(losses(drafter, data))}")
    for domain, (overlap, same) in agreement(target_model, drafter, data).items():
        click.echo(f"acceptance        {domain} {overlap:.3f}, same likeliest token {same:.3f}")
    costs = step_costs(target_model, drafter)
    click.echo(
        f"step              target {costs['target_1'] * 1e3:.2f} ms, 8 rows {costs['target_8'] / costs['target_1']:.2f}x, "
        f"drafter {costs['draft_1'] * 1e3:.2f} ms (a target step is {costs['target_1'] / costs['draft_1']:.1f} of them)"
    )
    tokenizer = AutoTokenizer.from_pretrained(target_path)
    for prompt in PROMPTS.read_text().split("\n---\n"):
        text, loops = greedy_loop(target_model, tokenizer, prompt)
        click.echo(f"{'LOOPS  ' if loops else ''}{prompt!r} -> {text!r}")


if __name__ == "__main__":
    main()
