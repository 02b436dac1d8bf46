"""Write a costlier model that computes the same function (`models.inflation`) into a folder.

python -m models.inflate models/tiny-target /tmp/inflated --factor 4
python -m models.inflate models/tiny-target /tmp/inflated --layers 24 --hidden 768
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import torch
from transformers import LlamaForCausalLM

from models.inflation import inflate

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--factor", type=click.FloatRange(min=1), help="Times the layers; excludes --layers and --hidden.")
@click.option("--layers", type=click.IntRange(min=1), help="Layers of the result.")
@click.option("--hidden", type=click.IntRange(min=1), help="Width of the result.")
def main(source: Path, out: Path, factor: float | None, layers: int | None, hidden: int | None) -> None:
    """Write to OUT a costlier model that computes what the model in SOURCE computes."""
    if factor is None and layers is None and hidden is None:
        raise click.UsageError("say how much larger: --factor, --layers or --hidden")
    if not (source / "config.json").is_file():
        raise click.ClickException(f"no model in {source}; give a folder with config.json and weights")
    try:
        # float32: the norm weights are rescaled, and rounding them again would change the function.
        result = inflate(LlamaForCausalLM.from_pretrained(source, dtype=torch.float32), layers, hidden, factor)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    result.save_pretrained(out)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    shape = {"layers": result.config.num_hidden_layers, "hidden": result.config.hidden_size}
    (out / "README.md").write_text(
        f"An INFLATED model: it computes what {source.name} computes at a higher cost (models/inflation.py).\n"
        f"Made from {json.dumps(result.config.inflated_from)} to {json.dumps(shape)}. Say so beside every figure.\n"
    )
    click.echo(f"{out}: inflated to {shape['layers']} layers x {shape['hidden']}")


if __name__ == "__main__":
    main()
