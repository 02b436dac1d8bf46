"""Train the network of the `awc` policy and write scheduler/speculation/awc.json.

    python -m models.awc [--scenarios 12000] [--epochs 100] [--out FILE]

As DSD describes it (arXiv 2511.21669): labels by a sweep of lengths 2 to 12 and target-only over random scenarios, L1 loss,
AdamW, 100 epochs. Each scenario is seen as it looks while the sessions work with several other lengths, for that is where a
policy that has to change finds itself. Half a minute on one core.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from models.awc.scenarios import LENGTHS, Array, Scenarios, draw, observed, sweep, worth
from scheduler.speculation.awc import FIRST_LENGTH, LEAVE_AT, LONGEST, SHORTEST, WEIGHTS, Network, Window

WIDTH = 32
VIEWS = 6
"""Times that each scenario is seen, from other previous lengths."""
HELD_OUT = 1000
DECISIONS = 30
"""Verdicts after which a session's length is looked at."""
DIGITS = 6


class Residual(torch.nn.Module):
    """The network that scheduler.speculation.awc.Network evaluates."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.first = torch.nn.Linear(5, width)
        self.inner = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(2))
        self.outer = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(2))
        self.last = torch.nn.Linear(width, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.silu(self.first(inputs))
        for inner, outer in zip(self.inner, self.outer, strict=True):
            hidden = hidden + outer(torch.nn.functional.silu(inner(hidden)))
        return self.last(hidden)[:, 0]

    def weights(self) -> dict[str, Any]:
        """By the names that Network reads."""
        named = {"first": self.first, "last": self.last}
        named |= {f"in_{n}": layer for n, layer in enumerate(self.inner)}
        named |= {f"out_{n}": layer for n, layer in enumerate(self.outer)}
        found: dict[str, Any] = {}
        for name, layer in named.items():
            kind, _, number = name.partition("_")
            bias = f"{kind}_bias_{number}" if number else f"{kind}_bias"
            found[name], found[bias] = _rounded(layer.weight), _rounded(layer.bias)
        found["last"], found["last_bias"] = found["last"][0], found["last_bias"][0]
        return found


def _rounded(values: torch.Tensor) -> Any:
    return np.vectorize(lambda value: float(f"{value:.{DIGITS}g}"))(values.detach().numpy()).tolist()


def train(scenarios: Scenarios, epochs: int, rng: np.random.Generator, tell: Callable[[str], None]) -> Residual:
    """L1 to the sweep's best length."""
    best, _ = sweep(scenarios)
    previous = [rng.choice([*LENGTHS, 1], len(scenarios)).astype(float) for _ in range(VIEWS)]
    inputs = torch.tensor(np.concatenate([observed(scenarios, one, rng) for one in previous]), dtype=torch.float32)
    labels = torch.tensor(np.tile(best, VIEWS), dtype=torch.float32)
    network, batch = Residual(), 256
    steps = math.ceil(len(labels) / batch) * epochs
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(labels)).split(batch):
            loss = torch.nn.functional.l1_loss(network(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        if (epoch + 1) % 10 == 0:
            tell(f"epoch {epoch + 1}: mean absolute error {total / len(labels):.3f} tokens")
    return network


def settled(network: Network, scenarios: Scenarios) -> Array:
    """The lengths at which sessions are after DECISIONS verdicts, all of a scenario deciding alike: what is served."""
    windows = [Window() for _ in range(len(scenarios))]
    for _ in range(DECISIONS):
        lengths = np.array([float(window.length) for window in windows])
        for window, row in zip(windows, observed(scenarios, lengths, None), strict=True):
            window.take(network(row))
    return np.array([float(window.length) for window in windows])


def evaluate(network: Network, scenarios: Scenarios, rng: np.random.Generator) -> dict[str, float]:
    """Error on scenarios it has not seen, and worth of its lengths over that of the sweep's best."""
    best, most = sweep(scenarios)
    previous = rng.choice(LENGTHS, len(scenarios)).astype(float)
    predicted = np.array([network(row) for row in observed(scenarios, previous, rng)])
    single = np.where(predicted <= LEAVE_AT, 0.0, np.round(np.clip(predicted, SHORTEST, LONGEST)))
    found = {"mean_absolute_error_tokens": float(np.abs(predicted - best).mean())}
    for name, lengths in (
        ("one_prediction", single),
        ("settled", settled(network, scenarios)),
        ("static_4", np.full(len(scenarios), float(FIRST_LENGTH))),
        ("target_only", np.zeros(len(scenarios))),
    ):
        share = worth(scenarios, lengths) / most
        found |= {f"{name}_of_best": float(share.mean()), f"{name}_of_best_p5": float(np.quantile(share, 0.05))}
    return {name: round(value, 3) for name, value in found.items()}


@click.command()
@click.option("--scenarios", "count", type=click.IntRange(min=1), default=12000, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=WEIGHTS, help="[default: the policy's own file]")
def main(count: int, epochs: int, seed: int, out: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = train(draw(count, rng), epochs, rng, print)
    weights = network.weights()
    figures = evaluate(Network(weights), draw(HELD_OUT, rng), rng)
    about = "made by python -m models.awc; lengths in tokens, inputs as scheduler.speculation.awc.features gives them"
    document = {"about": about, "scenarios": count, "epochs": epochs, "held_out": figures, "weights": weights}
    out.write_text(json.dumps(document, separators=(",", ":")) + "\n")
    for name, value in figures.items():
        print(f"{name:32}{value:8.3f}")
    print(f"{out.name}: {out.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
