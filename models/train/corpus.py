"""The training text: little-endian uint16 token ids, one file per domain and split (`story.train.bin`, …)."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch

MIXTURE = {"story": 0.58, "math": 0.22, "code": 0.20}
"""Share of each domain's sequences."""


class Corpus:
    """Random windows of the mixture for training, fixed ones for evaluation."""

    def __init__(self, folder: Path, mixture: dict[str, float] | None = None) -> None:
        self.mixture = mixture or MIXTURE
        self._data = {
            (domain, split): _read(folder, domain, split) for domain in self.mixture for split in ("train", "val")
        }

    def batch(self, sequences: int, length: int, rng: np.random.Generator) -> torch.Tensor:
        """Training windows: int64 (sequences, length + 1), each at a random offset of a randomly drawn domain."""
        domains = rng.choice(list(self.mixture), size=sequences, p=list(self.mixture.values()))
        rows = []
        for domain in domains:
            data = self._data[domain, "train"]
            start = rng.integers(0, len(data) - length)
            rows.append(data[start : start + length + 1])
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def validation(self, domain: str, sequences: int, length: int) -> torch.Tensor:
        """The first windows of a domain's validation text: int64 (sequences, length + 1)."""
        data = self._data[domain, "val"]
        sequences = min(sequences, (len(data) - 1) // length)
        rows = [data[at * length : at * length + length + 1] for at in range(sequences)]
        return torch.from_numpy(np.stack(rows).astype(np.int64))


def _read(folder: Path, domain: str, split: str) -> np.ndarray:
    path = folder / f"{domain}.{split}.bin"
    if not path.exists():
        raise click.ClickException(f"no corpus file {path}; say --corpus FOLDER (see models/README.md)")
    return np.fromfile(path, dtype="<u2")
