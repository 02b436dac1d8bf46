"""`specfleet simulate`: what a fleet would do, by the production code on a virtual clock."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from specfleet.cli.completion import files, values
from specfleet.cli.folders import made
from specfleet.cli.table import cell, table
from specfleet.core.errors import ConfigurationError
from specfleet.core.extras import need
from specfleet.core.signals import ended_by_ctrl_c
from specfleet.observability.progress import gauge, waiting

if TYPE_CHECKING:
    from simulator.baselines import Policy
    from simulator.config import Simulation
    from simulator.counters import Row
    from simulator.play import Progress
    from simulator.search import Cell, Found
    from simulator.tables import Tables
    from simulator.watch import Sink


def _configurations(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Those that ship, and files."""
    from simulator.document import shipped

    names = values(name.removesuffix(".yaml") for name in shipped())(context, parameter, incomplete)
    return names or files(context, parameter, incomplete)


def _policies(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from scheduler.speculation import POLICIES
    from simulator.baselines import BASELINES

    return values((*POLICIES, *BASELINES))(context, parameter, incomplete)


@click.command("simulate")
@click.argument("config", metavar="CONFIG.yaml", shell_complete=_configurations)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME",
    shell_complete=_policies,
    help="Instead of the file's; repeat it to compare.",
)
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Seeds 0 to N-1 instead of the file's.")
@click.option("--json", "as_json", is_flag=True, help="Print one object per run, too, a line each.")
@click.option("--plot", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Plots as PNG and SVG.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Tables of requests, rounds and events, a manifest, and a Chrome trace of the first run.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["csv", "parquet"]),
    default="csv",
    show_default=True,
    help="Of the tables; parquet needs pyarrow.",
)
def command(
    config: str,
    policies: tuple[str, ...],
    seeds: int | None,
    as_json: bool,
    plot: Path | None,
    out: Path | None,
    kind: str,
) -> None:
    """Simulate a fleet: the production loops on a virtual clock, around modelled engines, drafters and networks.

    \b
    specfleet simulate tutorial
    specfleet simulate dsd-600 --policy fair-goodput --policy awc --policy fixed:4 --json
    specfleet simulate my-fleet.yaml --seeds 5 --plot plots --out tables

    CONFIG is a file, or the name of a configuration that ships with the package. The same file and seed give the same figures
    on every machine.
    """
    for module, wanted in (("yaml", True), ("pydantic", True), ("matplotlib", plot is not None)):
        if wanted:
            need(module)
    from simulator.document import find, read
    from simulator.search import cells

    path = find(config)
    found = cells({**read(path), **_changes(policies, seeds)}, path)
    for folder in (plot, out):
        if folder is not None:
            made(folder)
    with ExitStack() as stack:
        session = Session(path, as_json, plot, out)
        if out is not None:
            from simulator.tables import Tables

            session.tables = stack.enter_context(Tables(out, kind))
        session.run(found)


def _changes(policies: Sequence[str], seeds: int | None) -> dict[str, Any]:
    from simulator.baselines import policy

    for one in policies:  # or the file would be blamed for it
        try:
            policy(one)
        except ConfigurationError as error:
            raise ConfigurationError(f"--policy is {one!r}, must be {error}") from None
    said: dict[str, Any] = {"policies": list(policies)} if policies else {}
    return said if seeds is None else {**said, "seeds": list(range(seeds))}


@dataclass(slots=True)
class Session:
    """All runs of one command, what they gave, and where it goes."""

    path: Path
    as_json: bool
    plot: Path | None
    out: Path | None
    tables: Tables | None = None
    figures: list[dict[str, Any]] = field(default_factory=list)
    _rows: dict[str, list[Row]] = field(default_factory=dict)
    _plotted: set[str] = field(default_factory=set)

    def run(self, cells: Sequence[Cell]) -> None:
        first = cells[0].config
        found: list[Found] = []
        for one in cells:
            if one.labels:
                click.echo(_labelled(one.labels))
            if one.config.capacity is not None:
                found += self._capacity(one)
            else:
                self._compare(one)
            click.echo()
        self._plots(cells, found)
        if self.out is not None:
            from simulator.tables import manifest, write_manifest

            write_manifest(self.out, manifest(first, self.path, self.figures))
        _definitions()
        if self.as_json:
            for figures in self.figures:
                click.echo(json.dumps(figures))

    def _compare(self, one: Cell) -> None:
        """Policies side by side, means over seeds."""
        from simulator.figures import COLUMNS, mean

        config, rows = one.config, []
        for policy in config.policies:
            own = [self._one(config, policy, seed, one.labels) for seed in config.seeds]
            rows.append((policy.name, *(_cell(mean(own, column), form, len(own)) for _, column, form in COLUMNS)))
        click.echo(table(("policy", *(name for name, _, _ in COLUMNS)), rows))
        for text in _beside(self.figures[-len(config.policies) * len(config.seeds) :]):
            click.echo(text)

    def _capacity(self, one: Cell) -> list[Found]:
        from simulator.search import capacity

        config, wanted = one.config, one.config.capacity
        assert wanted is not None
        found = []
        for policy, seed in itertools.product(config.policies, config.seeds):
            found.append(
                capacity(
                    one,
                    self.path,
                    policy,
                    seed,
                    lambda changed, own, number: self._one(changed, own, number, one.labels),
                )
            )
        rows = [
            (policy.name, f"{sum(loads) / len(loads):.1f}", f"{min(loads)}–{max(loads)}")
            for policy in config.policies
            for loads in [[each.capacity for each in found if each.policy == policy.name]]
        ]
        click.echo(f"largest {wanted.vary} with {wanted.attainment:.0%} of requests within their class")
        click.echo(table(("policy", "capacity", "over seeds"), rows))
        for each in found:
            self.figures.append(
                {
                    "policy": each.policy,
                    "seed": each.seed,
                    "capacity": each.capacity,
                    "vary": wanted.vary,
                    **_grid(one.labels),
                }
            )
        return found

    def _one(self, config: Simulation, policy: Policy, seed: int, labels: dict[str, Any]) -> dict[str, Any]:
        from simulator.figures import figures
        from simulator.play import play

        first = not self.figures
        with ExitStack() as stack:
            sinks = self._sinks(config, policy, seed, stack if first else None)
            progress = stack.enter_context(_progress(f"{policy.name}, seed {seed}"))
            stack.enter_context(ended_by_ctrl_c())
            began = time.perf_counter()
            played = play(config, policy, seed, folder=self.path.parent, sinks=sinks, progress=progress)
            found = {**figures(played, time.perf_counter() - began), **_grid(labels)}
        if self.plot is not None:
            self._rows.setdefault(policy.name, []).extend(played.rows)
            self._timeline(policy.name, sinks)
        self.figures.append(found)
        return found

    def _sinks(self, config: Simulation, policy: Policy, seed: int, stack: ExitStack | None) -> list[Sink]:
        sinks: list[Sink] = []
        if self.tables is not None:
            self.tables.run(policy.name, seed)
            sinks.append(self.tables)
        if self.out is not None and stack is not None:
            from simulator.chrome import ChromeTrace

            sinks.append(stack.enter_context(ChromeTrace(self.out / "trace.json")))
        if self.plot is not None and policy.name not in self._plotted:
            from simulator.timeline import Timeline

            sinks.append(Timeline(config.duration, config.drafters))
        return sinks

    # --- plots -------------------------------------------------------------------------------------------------------

    def _timeline(self, policy: str, sinks: Sequence[Sink]) -> None:
        from simulator import plots
        from simulator.timeline import Timeline

        for sink in sinks:
            if isinstance(sink, Timeline) and self.plot is not None:
                plots.timeline(self.plot, policy, sink)
                self._plotted.add(policy)

    def _plots(self, cells: Sequence[Cell], found: Sequence[Found]) -> None:
        if self.plot is None:
            return
        from simulator import plots
        from simulator.search import attainment

        plots.latencies(self.plot, self._rows)
        config = cells[0].config
        if config.capacity is not None:
            wanted = config.capacity
            tried = {
                each.policy: {load: attainment(one, wanted.service_class) for load, one in each.tried.items()}
                for each in found
            }
            plots.capacity(self.plot, tried, wanted.vary, wanted.attainment)
        elif len(cells) > 1:
            speeds: dict[str, list[float]] = {}
            for figures in self.figures:
                if figures["seed"] == config.seeds[0]:
                    speeds.setdefault(figures["policy"], []).append(figures["tokens_per_s"])
            plots.grid(self.plot, speeds, [_labelled(one.labels) for one in cells])


def _grid(labels: dict[str, Any]) -> dict[str, Any]:
    return {"grid": labels} if labels else {}


def _labelled(labels: dict[str, Any]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in labels.items())


def _cell(value: float | None, form: str, seeds: int) -> str:
    """Counts are means of several seeds."""
    return cell(value, ".1f" if form == "d" and seeds > 1 else "g" if form == "d" else form)


def _beside(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What has no column of its own: classes, and costs."""
    for one in found:
        kept = [f"{name or 'no class'} {own['attained']:.1%}" for name, own in one["slo"].items() if name]
        if kept:
            yield f"{one['policy']}, seed {one['seed']}: attained {', '.join(kept)}"
        if one.get("cost"):
            known = {name: cell(value, ".3g") for name, value in one["cost"].items()}
            yield (
                f"{one['policy']}, seed {one['seed']}: {known['per_million_tokens']} per million tokens, "
                f"{known['joules_per_token']} J per token"
            )


def _definitions() -> None:
    from simulator.figures import DEFINITIONS

    for text in DEFINITIONS:
        click.echo(text)


@contextmanager
def _progress(label: str) -> Iterator[Progress]:
    """How far a run is, and its events per second."""
    began = time.perf_counter()
    with waiting(label) as tell:

        def look(share: float, events: int) -> None:
            rate = events / max(time.perf_counter() - began, 1e-9)
            tell(f"{label:<28.28} {gauge(share)} {rate:,.0f} events/s")

        yield look
