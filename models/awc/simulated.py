"""Scenarios for `awc` by the simulator: what every length is worth there, and what the policy would have measured.

    python -m models.awc.simulated [--scenarios 160] [--held-out 40] [--table FILE] [--write]

Workload x network x devices are drawn (models.awc.scenarios, and a pace that requests are to keep); lengths are swept by short
runs of the production loops on a virtual clock. A length's score is its tokens/s, half of it for requests that keep the pace.
What `python -m models.awc` wrote is trained further on these, and both are compared on scenarios that neither has seen;
--write ships the better one. Some minutes on one core; --table keeps the sweep.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from models.awc.__main__ import Residual
from models.awc.scenarios import draw
from scheduler.speculation.awc import WEIGHTS, Network, Window, features
from simulator.baselines import policy
from simulator.document import checked
from simulator.figures import figures
from simulator.play import play

LENGTHS = (0, 2, 3, 4, 6, 8, 12)
"""Fewer than the analytic sweep compares: between neighbours scores hardly differ."""
MOST_SESSIONS = 12
ROUNDS = 20
"""About how many of the longest ones a run has time for."""
TEXT = 48
"""Tokens of a text, so that a run has several per session."""
DECISIONS = 30
"""Verdicts after which a session's length is looked at."""
EPOCHS, RATE = 60, 3e-4
"""Of training further: few scenarios, small steps."""


@dataclass(frozen=True, slots=True)
class Swept:
    """One scenario: by length, its score and the network's inputs."""

    scores: tuple[float, ...]
    inputs: tuple[tuple[float, ...], ...]

    @property
    def best(self) -> int:
        return LENGTHS[int(np.argmax(self.scores))]

    def share(self, length: int) -> float:
        """Of the best score, at the swept length nearest to `length`."""
        return self.scores[nearest(length)] / max(self.scores)


def nearest(length: int) -> int:
    """Place in LENGTHS; target-only only for target-only."""
    if not length:
        return 0
    return min(range(1, len(LENGTHS)), key=lambda place: abs(LENGTHS[place] - length))


def sweep(count: int, seed: int) -> list[Swept]:
    """`count` scenarios."""
    rng = np.random.default_rng(seed)
    drawn = draw(count, rng)
    paces = np.exp(rng.uniform(np.log(0.5), np.log(2.0), count))
    found = []
    for number in range(count):
        one = {name: float(getattr(drawn, name)[number]) for name in drawn.__slots__}
        found.append(_swept(one, float(paces[number]), seed + number))
        print(f"\r{number + 1} of {count} scenarios", end="", flush=True)
    print()
    return found


def _swept(one: dict[str, float], pace: float, seed: int) -> Swept:
    sessions = 1 + int(one["sessions"]) % MOST_SESSIONS
    local = one["fixed"] + sessions * (one["per_token"] + one["context"])
    longest = local + LENGTHS[-1] * (one["draft"] + sessions * one["per_token"]) + one["round_trip"]
    document = {
        "duration": ROUNDS * longest,
        "warm_up": ROUNDS * longest / 4.0,
        "tiers": {
            "device": {
                "count": sessions,
                "draft_seconds": one["draft"],
                "acceptance": one["acceptance"],
                "network": {"round_trip": one["round_trip"], "jitter": 0.05 * one["round_trip"]},
                "service_class": "paced",
            }
        },
        "verifiers": {
            "gpu": {
                "profile": {"fixed": one["fixed"], "per_token": one["per_token"], "per_cached": one["context"] / 64.0}
            }
        },
        "workload": {"closed_loop": {}, "prompt_tokens": 40, "output_tokens": TEXT},
        # A pace that nobody is held to: what the batching does for classes is another matter.
        "classes": {"paced": {"weight": 1.0}},
    }
    config = checked(document, Path("scenario.yaml"))
    target = local * pace
    scores, inputs = [], []
    for length in LENGTHS:
        played = play(config, policy(f"fixed:{length}" if length else "none"), seed)
        found = figures(played, 0.0)
        speeds = np.array([speed or 1e-3 for speed in played.speeds])
        kept = float(np.mean(1.0 / speeds <= target))
        scores.append(float(found["tokens_per_s"]) * (0.5 + 0.5 * kept))
        step = float(found["verifier"]["step_s"]["p50"] or one["fixed"])
        busy = 1.0 - one["fixed"] / step
        inputs.append(features(busy, one["acceptance"], one["round_trip"], 1.0 / float(speeds.mean()), length))
    return Swept(tuple(scores), tuple(inputs))


def settled(network: Network, one: Swept) -> int:
    """The length at which sessions are after DECISIONS verdicts."""
    window = Window()
    for _ in range(DECISIONS):
        window.take(network(one.inputs[nearest(window.length)]))
    return window.length


def evaluate(network: Network, scenarios: Sequence[Swept]) -> dict[str, float]:
    """Mean and worst twentieth of the share of the best score."""
    shares = [one.share(settled(network, one)) for one in scenarios]
    return {"of_best": round(float(np.mean(shares)), 3), "of_best_p5": round(float(np.quantile(shares, 0.05)), 3)}


def further(weights: dict[str, Any], scenarios: Sequence[Swept], seed: int) -> dict[str, Any]:
    """The network trained on, by L1 to the best length, seen from every length."""
    torch.manual_seed(seed)
    network = loaded(weights)
    inputs = torch.tensor([row for one in scenarios for row in one.inputs], dtype=torch.float32)
    labels = torch.tensor([float(one.best) for one in scenarios for _ in one.inputs])
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels)).split(64):
            loss = torch.nn.functional.l1_loss(network(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.weights()


def loaded(weights: dict[str, Any]) -> Residual:
    """A network with weights by the names that `Residual.weights` gives them."""
    network = Residual(len(weights["first_bias"]))
    layers = {"first": network.first, "last": network.last}
    layers |= {f"in_{n}": layer for n, layer in enumerate(network.inner)}
    layers |= {f"out_{n}": layer for n, layer in enumerate(network.outer)}
    with torch.no_grad():
        for name, layer in layers.items():
            kind, _, number = name.partition("_")
            bias = weights[f"{kind}_bias_{number}" if number else f"{kind}_bias"]
            layer.weight.copy_(torch.tensor(weights[name]).reshape(layer.weight.shape))
            layer.bias.copy_(torch.tensor(bias).reshape(layer.bias.shape))
    return network


@click.command()
@click.option("--scenarios", type=click.IntRange(min=1), default=160, show_default=True)
@click.option("--held-out", type=click.IntRange(min=1), default=40, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--table", type=click.Path(path_type=Path), help="Read the sweep from there, or keep it there.")
@click.option("--write", is_flag=True, help="Ship the new weights if they are better.")
def main(scenarios: int, held_out: int, seed: int, table: Path | None, write: bool) -> None:
    torch.set_num_threads(1)
    if table is not None and table.exists():
        swept = [Swept(tuple(one["scores"]), tuple(map(tuple, one["inputs"]))) for one in json.loads(table.read_text())]
    else:
        swept = sweep(scenarios + held_out, seed)
        if table is not None:
            table.write_text(json.dumps([asdict(one) for one in swept]))
    training, unseen = swept[:-held_out], swept[-held_out:]
    document = json.loads(WEIGHTS.read_text())
    new = further(document["weights"], training, seed)
    rows = {
        "as shipped": evaluate(Network(document["weights"]), unseen),
        "trained further": evaluate(Network(new), unseen),
    }
    rows |= {
        name: {"of_best": round(float(np.mean([one.share(length) for one in unseen])), 3)}
        for name, length in (("static 4", 4), ("target-only", 0))
    }
    for name, found in rows.items():
        print(f"{name:16}{found}")
    if write and rows["trained further"]["of_best"] > rows["as shipped"]["of_best"]:
        about = "trained further by python -m models.awc.simulated"
        document |= {"weights": new, "simulated": {"about": about, "scenarios": len(training), "held_out": rows}}
        WEIGHTS.write_text(json.dumps(document, separators=(",", ":")) + "\n")
        print(f"{WEIGHTS.name} written")


if __name__ == "__main__":
    main()
