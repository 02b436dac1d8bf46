"""Figures of runs as PNG and SVG, the simulator's and those of live fleets. Whoever imports this needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FORMATS = ("png", "svg")
mpl.rcParams["svg.hashsalt"] = "specfleet"  # ids within the file do not change from run to run
NO_DATE: Mapping[str, Mapping[str, Any]] = {"svg": {"Date": None}, "png": {}}


def latencies(folder: Path, times: Mapping[str, Sequence[tuple[float, float]]]) -> list[Path]:
    """Distributions of TTFT and TPOT by run, from each request's (ttft, tpot) in seconds: the share of requests that took at
    most so long."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for place, (axes, name) in enumerate(zip(figure.subplots(1, 2), ("ttft", "tpot"), strict=True)):
        for run, own in times.items():
            values = np.sort([one[place] * 1e3 for one in own])
            if len(values):
                axes.step(values, np.arange(1, len(values) + 1) / len(values), where="post", label=run)
        axes.set(xlabel=f"{name.upper()}, ms", ylabel="share of requests", ylim=(0, 1))
        logarithmic(axes)
        axes.legend(fontsize="small")
    return save(figure, folder, "latencies")


def sweep(folder: Path, load: str, runs: Sequence[tuple[float, Mapping[str, Any]]]) -> list[Path]:
    """What a fleet gives at each load: throughput and goodput, and the first token's wait. `runs`: (load, figures)."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    at = [where for where, _ in runs]
    for name, label in (("tokens_per_s", "all"), ("goodput_tokens_per_s", "of requests that kept their class")):
        left.plot(at, [found[name] for _, found in runs], marker="o", label=label)
    left.set(xlabel=load, ylabel="tokens/s")
    left.set_ylim(bottom=0.0)
    for percent in ("p50", "p95"):
        waits = [found["ttft_s"][percent] for _, found in runs]
        right.plot(at, [np.nan if wait is None else wait * 1e3 for wait in waits], marker="o", label=percent)
    right.set(xlabel=load, ylabel="TTFT, ms")
    for axes in (left, right):
        axes.legend(fontsize="small")
    return save(figure, folder, "sweep")


def logarithmic(axes: Axes) -> None:
    """Where the values need it."""
    low, high = axes.get_xlim()
    if low > 0.0 and high / low > 30.0:
        axes.set_xscale("log")


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}.{kind}" for kind in FORMATS]
    for path, kind in zip(paths, FORMATS, strict=True):
        figure.savefig(path, dpi=130, metadata=dict(NO_DATE[kind]))
    return paths
