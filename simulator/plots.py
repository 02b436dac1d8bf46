"""Figures of runs as PNG and SVG. The only module that needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulator.counters import Row
from simulator.timeline import Timeline

FORMATS = ("png", "svg")
mpl.rcParams["svg.hashsalt"] = "specfleet"  # ids within the file do not change from run to run
NO_DATE: Mapping[str, Mapping[str, Any]] = {"svg": {"Date": None}, "png": {}}


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
    return _save(figure, folder, f"timeline-{_file(name)}")


def latencies(folder: Path, rows: Mapping[str, Sequence[Row]]) -> list[Path]:
    """Distributions of TTFT and TPOT by policy: the share of requests that took at most so long."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("ttft", "tpot"), strict=True):
        for policy, own in rows.items():
            values = np.sort([getattr(row, name) * 1e3 for row in own if row.outcome == "finished" and row.tokens > 1])
            if len(values):
                axes.step(values, np.arange(1, len(values) + 1) / len(values), where="post", label=policy)
        axes.set(xlabel=f"{name.upper()}, ms", ylabel="share of requests", ylim=(0, 1))
        _logarithmic(axes)
        axes.legend(fontsize="small")
    return _save(figure, folder, "latencies")


def capacity(folder: Path, tried: Mapping[str, Mapping[int, float]], load: str, wanted: float) -> list[Path]:
    """Attainment over load by policy, and where the line is."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for policy, points in tried.items():
        axes.plot(sorted(points), [points[at] for at in sorted(points)], marker="o", label=policy)
    axes.axhline(wanted, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel=load, ylabel="requests within their class", ylim=(0, 1.02))
    axes.legend(fontsize="small")
    return _save(figure, folder, "capacity")


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
    return _save(figure, folder, "grid")


def _smooth(values: Any) -> Any:
    return np.convolve(values, np.ones(5) / 5.0, mode="same")


def _logarithmic(axes: Axes) -> None:
    low, high = axes.get_xlim()
    if low > 0.0 and high / low > 30.0:
        axes.set_xscale("log")


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in name)


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}.{kind}" for kind in FORMATS]
    for path, kind in zip(paths, FORMATS, strict=True):
        figure.savefig(path, dpi=130, metadata=dict(NO_DATE[kind]))
    return paths
