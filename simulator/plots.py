"""Figures of simulated runs as PNG and SVG. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from simulator.counters import Row
from simulator.timeline import Timeline
from specfleet.bench import plots


def timeline(folder: Path, name: str, found: Timeline) -> list[Path]:
    """Lengths and goodput of the first drafters over time."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for client in range(found.clients):
        above.plot(found.times, found.lengths[client], linewidth=1, label=f"drafter {client}")
        below.plot(found.times, _smooth(found.goodput[client]), linewidth=1)
    above.set(ylabel="verified tokens a round", title=name)
    below.set(ylabel="tokens/s", xlabel="seconds")
    above.legend(ncols=4, fontsize="x-small")
    return plots.save(figure, folder, f"timeline-{_file(name)}")


def latencies(folder: Path, rows: Mapping[str, Sequence[Row]]) -> list[Path]:
    """Distributions of TTFT and TPOT by policy, over requests that finished."""
    times = {
        policy: [(row.ttft, row.tpot) for row in own if row.outcome == "finished" and row.tokens > 1]
        for policy, own in rows.items()
    }
    return plots.latencies(folder, times)


def capacity(folder: Path, tried: Mapping[str, Mapping[int, float]], load: str, wanted: float) -> list[Path]:
    """Attainment over load by policy, and where the line is."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for policy, points in tried.items():
        axes.plot(sorted(points), [points[at] for at in sorted(points)], marker="o", label=policy)
    axes.axhline(wanted, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel=load, ylabel="requests within their class", ylim=(0, 1.02))
    axes.legend(fontsize="small")
    return plots.save(figure, folder, "capacity")


def grid(folder: Path, speeds: Mapping[str, Sequence[float]], cells: Sequence[str]) -> list[Path]:
    """Tokens per second by cell and policy, relative to the first policy."""
    figure = Figure(figsize=(max(6, 0.25 * len(cells)), 5), layout="constrained")
    axes = figure.subplots()
    base = np.array(next(iter(speeds.values())))
    for policy, own in speeds.items():
        axes.plot(np.array(own) / np.maximum(base, 1e-9), marker=".", label=policy)
    axes.set_xticks(range(len(cells)), cells, rotation=90, fontsize=6)
    axes.set(ylabel=f"tokens/s relative to {next(iter(speeds))}")
    axes.legend(fontsize="small")
    return plots.save(figure, folder, "grid")


def _smooth(values: Any) -> Any:
    return np.convolve(values, np.ones(5) / 5.0, mode="same")


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in name)
