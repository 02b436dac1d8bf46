"""The training loop: Muon for matrices, AdamW for the rest, bfloat16 autocast, checkpoints that resume where they were."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

Loss = Callable[[torch.Tensor], torch.Tensor]
"""Windows (sequences, length + 1) -> mean loss per token."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast to learn."""

    steps: int
    """Optimizer steps in all, those before a resume included."""
    batch: int = 32
    """Sequences in a step."""
    micro: int = 8
    """Sequences in a forward pass; the rest of the step is accumulated."""
    length: int = 256
    """Tokens of a sequence."""
    rate: float = 2e-3
    """Learning rate after the warm-up."""
    warmup: int = 20
    decay: float = 0.4
    """Share of the steps, at the end, over which the rate falls to zero in a straight line."""
    floor: float = 0.0
    """Learning rate at the end of the decay; above zero where another run goes on from here."""
    minutes: float | None = None
    """Where given, the run ends after this much training even if steps are left, and the decay follows this clock."""
    seed: int = 1

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is done, 0 to 1, after this many steps and seconds of training."""
        by_clock = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(step / self.steps, by_clock))

    def rate_at(self, step: int, seconds: float) -> float:
        left = 1.0 - self.progress(step, seconds)
        falling = min(1.0, left / self.decay) if self.decay else 1.0
        return min(1.0, (step + 1) / self.warmup) * (self.floor + (self.rate - self.floor) * falling)


class Trainer:
    def __init__(
        self, model: Any, plan: Plan, run: Path, sample: Callable[[np.random.Generator], torch.Tensor]
    ) -> None:
        self.model = model
        self.plan = plan
        self.run = run
        self.step = 0
        self.seconds = 0.0
        """Spent training, those before a resume included."""
        self._sample = sample
        self._rng = np.random.default_rng(plan.seed)
        hidden = [
            p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "lm_head" not in name
        ]
        known = set(map(id, hidden))
        rest = [p for p in model.parameters() if id(p) not in known]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(hidden, lr=plan.rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=plan.rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def train(self, loss: Loss, every: int = 10, save_every: float = 180.0) -> None:
        """To the end of the plan, from wherever the run stands; saves every `save_every` seconds."""
        self.model.train()
        first, before, smooth = self.step, self.seconds, None
        began = saved = time.monotonic()
        while self.plan.progress(self.step, self.seconds) < 1.0:
            value = self._one(loss)
            smooth = value if smooth is None else 0.95 * smooth + 0.05 * value
            self.step += 1
            now = time.monotonic()
            self.seconds = before + now - began
            if self.step % every == 0:
                self._report(value, smooth, (now - began) / (self.step - first))
            if now - saved > save_every:
                self.save()
                saved = now
        self.save()

    def save(self) -> None:
        """Model and optimizers, replaced in one go."""
        self.run.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [one.state_dict() for one in self._optimizers],
            "rng": self._rng.bit_generator.state,
        }
        partial = self.run / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.run / "checkpoint.pt")
        (self.run / "plan.json").write_text(json.dumps(asdict(self.plan), indent=2))

    def resume(self) -> bool:
        """Go on from the run's checkpoint, if there is one."""
        path = self.run / "checkpoint.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, own in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        self._rng.bit_generator.state = state["rng"]
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def _one(self, loss: Loss) -> float:
        rate = self.plan.rate_at(self.step, self.seconds)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        windows, total = self._sample(self._rng), 0.0
        for part in windows.split(self.plan.micro):
            value = loss(part) * (len(part) / len(windows))
            value.backward()
            total += value.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return total

    def _report(self, value: float, smooth: float, seconds: float) -> None:
        left = (self.plan.steps - self.step) * seconds
        if self.plan.minutes:
            left = min(left, 60 * self.plan.minutes - self.seconds)
        speed = self.plan.batch * self.plan.length / seconds
        click.echo(
            f"step {self.step}/{self.plan.steps}  loss {value:.3f} (smoothed {smooth:.3f})  "
            f"rate {self.plan.rate_at(self.step, self.seconds):.1e}  {speed:,.0f} tokens/s  {left / 60:.0f} min left"
        )


def target_loss(model: Any, device: torch.device) -> Loss:
    """Cross-entropy of the next token."""

    def loss(windows: torch.Tensor) -> torch.Tensor:
        windows = windows.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = model(input_ids=windows[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())

    return loss


def draft_loss(model: Any, target: Any, device: torch.device, overlap: float) -> Loss:
    """Distillation from the target p into the drafter q: `overlap` * total variation + (1 - overlap) * KL(p || q).

    The chance that a drafted token is accepted is sum_v min(p_v, q_v) = 1 - TV(p, q) (Leviathan et al. 2023), so total
    variation is the figure itself; KL has the better gradient far from the goal.
    """

    def loss(windows: torch.Tensor) -> torch.Tensor:
        inputs = windows[:, :-1].to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            with torch.no_grad():
                p = target(input_ids=inputs, use_cache=False).logits
            q = model(input_ids=inputs, use_cache=False).logits
        log_p, log_q = p.float().log_softmax(-1), q.float().log_softmax(-1)
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        variation = 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1).mean()
        return overlap * variation + (1 - overlap) * divergence

    return loss
