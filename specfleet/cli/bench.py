"""`specfleet bench`: load on a running fleet, and what its users would have seen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from specfleet.bench import plan as plans
from specfleet.bench import trace
from specfleet.bench.breakdown import breakdown as phases
from specfleet.bench.breakdown import check_traced
from specfleet.bench.daemons import daemon_figures
from specfleet.bench.figures import figures
from specfleet.bench.load import Load, Plan, Record
from specfleet.bench.prompts import read_prompts
from specfleet.bench.scrape import Interval, Scrape, scrape_all
from specfleet.bench.traces import Row, read_trace
from specfleet.cli.bench_tables import show, show_breakdown, show_sweep
from specfleet.cli.demo import PROMPTS
from specfleet.cli.folders import made
from specfleet.cli.server import call_options, client_arguments, server_option
from specfleet.client import AsyncClient
from specfleet.core.errors import ConfigurationError, ConnectionError_
from specfleet.core.extras import need
from specfleet.core.types import SamplingParams, ServiceClass

INTERRUPTED = 130
MAX_TOKENS = 64
LONGEST = 1_000_000
"""Of a trace's outputs, where nobody said how long they may be."""


@click.command("bench")
@server_option("A drafter, or a verifier; repeat it and each stream goes to one of them in turn.")
@call_options
@click.option(
    "--prompts",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='JSON lines with "prompt" (or Spec-Bench\'s "turns"); over and over if too few.  [default: four of our own]',
)
@click.option(
    "--requests", type=click.IntRange(min=1), default=32, show_default=True, metavar="N", help="How many in all."
)
@click.option(
    "--rate",
    "rates",
    type=float,
    multiple=True,
    metavar="R|inf",
    help="Open loop: Poisson arrivals, R requests per second; inf: all at once, or as --concurrency lets them. Repeat it "
    "for a sweep, a run each.",
)
@click.option(
    "--concurrency",
    "lanes",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="N",
    help=f"Closed loop: N streams, each with one request at a time; with --rate R or --trace, most requests at a time. Repeat "
    f"it for a sweep, a run each.  [default: {plans.LANES}; with --rate or --trace no limit]",
)
@click.option(
    "--trace",
    "recorded",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Open loop: the first requests of a trace (Azure's CSV, Mooncake's JSON lines) when they came and as long as they "
    "were, of the words of --prompts.",
)
@click.option(
    "--speed", type=float, default=1.0, show_default=True, metavar="X", help="Play the trace X times as fast."
)
@click.option(
    "--max-prompt-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Cut the trace's prompts to about so many tokens.",
)
@click.option(
    "--max-tokens",
    type=int,
    metavar="N",
    help=f"Length of each completion; with --trace the most it may be.  [default: {MAX_TOKENS}; with --trace as recorded]",
)
@click.option("--temperature", type=float, default=0.0, show_default=True, metavar="X", help="0: the likeliest token.")
@click.option("--ignore-eos", is_flag=True, help="Every completion as long as --max-tokens.")
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", help="Of the arrivals; given, request i is seeded with N + i."
)
@click.option(
    "--slo", "classes", multiple=True, metavar="CLASS", help="Service class; repeat it and requests take them in turn."
)
@click.option(
    "--target-only", is_flag=True, help="Nobody drafts for these requests: what drafting is to be compared with."
)
@click.option(
    "--metrics", multiple=True, metavar="HOST:PORT", help="A daemon's metrics, for what it alone knows; repeatable."
)
@click.option(
    "--breakdown",
    is_flag=True,
    help="Where the time of rounds and steps went; needs --metrics of daemons that run with --trace.",
)
@click.option(
    "--trace-out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.json",
    help="A Chrome trace of the run, by daemons that run with --trace and whose --metrics are given.",
)
@click.option("--plot", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Plots as PNG and SVG.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the figures as one object on the last line, too; of a sweep a line each.",
)
def command(
    metrics: tuple[str, ...],
    breakdown: bool,
    trace_out: Path | None,
    plot: Path | None,
    as_json: bool,
    **flags: Any,
) -> int | None:
    """Put load on a running fleet and print what its users would have seen.

    \b
    specfleet bench --requests 64 --concurrency 8
    specfleet bench --server edge-1:7700 --server edge-2:7700 --prompts prompts.jsonl --rate 4
    specfleet bench --requests 64 --target-only
    specfleet bench --rate 1 --rate 2 --rate 4 --rate 8 --slo chat --plot plots
    specfleet bench --trace azure.csv --requests 200 --speed 10 --max-prompt-tokens 1024
    specfleet bench --slo interactive --slo batch --metrics 127.0.0.1:7601 --metrics 127.0.0.1:7701 --json

    Ctrl-C ends it and prints what was measured so far.
    """
    if plot is not None:
        need("matplotlib")
        made(plot)
    load, runs = _runs(flags)
    if trace_out is not None and len(runs) > 1:
        raise click.UsageError("--trace-out is of one run; leave the sweep out")
    session = _Session(flags, metrics, breakdown, trace_out, as_json)
    done = [session.run(at, plan) for at, plan in runs]
    if len(runs) > 1:
        show_sweep(load, session.sweep)
        for line in session.lines:
            click.echo(line)
    if plot is not None and session.sweep:
        _plot(plot, load, session)
    return next(filter(None, done), None)


def _runs(flags: dict[str, Any]) -> tuple[str, list[tuple[float, Plan]]]:
    """What varies, and each run: its load and its plan. Raises what flags, prompts and traces are refused with."""
    rates, lanes, recorded, count = (flags.pop(name) for name in ("rates", "lanes", "recorded", "requests"))
    speed, longest = flags.pop("speed"), flags.pop("max_prompt_tokens")
    for rate in rates:
        if not rate > 0.0:
            raise click.UsageError(f"--rate is {rate:g}, must be above 0 requests per second, or inf")
    if not 0.0 < speed < math.inf:
        raise click.UsageError(f"--speed is {speed:g}, must be a number above 0")
    if recorded is None and (speed != 1.0 or longest is not None):
        raise click.UsageError("--speed and --max-prompt-tokens are about a trace; give --trace, or leave them out")
    if recorded is not None and rates:
        raise click.UsageError("--trace says when requests come, and so does --rate; give one of them")
    if len(rates) > 1 and len(lanes) > 1:
        raise click.UsageError("a sweep is over --rate or over --concurrency; repeat one of them only")
    wanted = _wanted(flags, MAX_TOKENS if recorded is None else LONGEST)
    if recorded is not None:
        rows: list[Row] = read_trace(recorded, count)
        return "streams", [
            (float(one or len(rows)), plans.replay(wanted, rows, speed, one, longest)) for one in lanes or (None,)
        ]
    if len(lanes) > 1:
        rate = rates[0] if rates else None
        return "streams", [(float(one), plans.plan(wanted, count, rate, one)) for one in lanes]
    one_lane = lanes[0] if lanes else None
    if not rates:
        return "streams", [(float(one_lane or plans.LANES), plans.plan(wanted, count, None, one_lane))]
    return "requests/s", [(rate, plans.plan(wanted, count, rate, one_lane)) for rate in rates]


def _wanted(flags: dict[str, Any], max_tokens: int) -> plans.Wanted:
    file = flags["file"]
    return plans.Wanted(
        prompts=read_prompts(file) if file else tuple(PROMPTS),
        classes=flags["classes"] or ("",),
        target_only=flags["target_only"],
        sampling=SamplingParams(
            max_tokens=max_tokens if flags["max_tokens"] is None else flags["max_tokens"],
            temperature=flags["temperature"],
            ignore_eos=flags["ignore_eos"],
            seed=flags["seed"],
        ),
    )


@dataclass(slots=True)
class _Session:
    """All runs of one command."""

    flags: dict[str, Any]
    metrics: tuple[str, ...]
    breakdown: bool
    trace_out: Path | None
    as_json: bool
    sweep: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    """(load, figures) of each run that brought tokens."""
    times: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """(ttft, tpot) of each finished request, by load."""
    lines: list[str] = field(default_factory=list)
    """The figures as JSON, again, for the end of a sweep's output."""

    def run(self, at: float, plan: Plan) -> int | None:
        """Measure and show; returns an exit code if it was interrupted. Raises the first error where nothing finished."""
        began = time.perf_counter()
        fleet = _Fleet(self.flags["servers"], client_arguments(dict(self.flags)), plan)
        before = _scrapes(self.metrics)
        if self.breakdown:
            check_traced(before)
        if self.trace_out is not None:
            _check_traces(before)
        interrupted = fleet.measure()
        if any(record.tokens for record in fleet.records):
            self._show(at, plan, fleet, _intervals(before, self.metrics), began)
            if self.trace_out is not None:
                spans = [trace.fetch(one) for one in before]
                written = trace.write(self.trace_out, spans, fleet.records, fleet.began)
                click.echo(f"\n{written} spans in {self.trace_out}, for ui.perfetto.dev or chrome://tracing")
            if self.as_json:
                click.echo(self.lines[-1])
        if interrupted:
            return INTERRUPTED
        if not any(record.finished for record in fleet.records):
            raise next(record.error for record in fleet.records if record.error is not None)
        return None

    def _show(self, at: float, plan: Plan, fleet: _Fleet, intervals: Sequence[Interval], began: float) -> None:
        found = figures(
            fleet.records,
            fleet.classes,
            daemon_figures(intervals),
            streams=plan.streams,
            seed=self.flags["seed"] or 0,
            wall_s=time.perf_counter() - began,
        )
        found["load"] = at
        show(found, fleet.records, len(plan.requests))
        if self.breakdown:
            found["breakdown"] = parts = phases(intervals)
            show_breakdown(parts)
        self.sweep.append((at, found))
        self.times[f"{at:g}"] = [(one.ttft, one.tpot) for one in fleet.records if one.finished and one.tokens > 1]
        self.lines.append(json.dumps(found))


def _plot(folder: Path, load: str, session: _Session) -> None:
    # Imported here: it takes a second, and most runs draw nothing.
    from specfleet.bench import plots

    plots.latencies(folder, {f"{at} {load}": times for at, times in session.times.items()})
    if len(session.sweep) > 1:
        plots.sweep(folder, load, session.sweep)


class _Fleet:
    """One client for each server, so that a server that fails is seen and not made good by another."""

    def __init__(self, servers: Sequence[str], arguments: dict[str, Any], plan: Plan) -> None:
        self._clients = [AsyncClient(server, **arguments) for server in servers]
        self._plan = plan
        self._load: Load | None = None
        self.classes: list[ServiceClass] = []

    @property
    def records(self) -> list[Record]:
        return self._load.records if self._load else []

    @property
    def began(self) -> float:
        """`time.perf_counter` at time 0 of the records."""
        return self._load.start if self._load else 0.0

    def measure(self) -> bool:
        """Returns True if Ctrl-C ended it. Raises ConnectionError_ before any load where a server does not answer."""
        try:
            with _progress(len(self._plan.requests)) as done:
                asyncio.run(self._measure(done))
        except KeyboardInterrupt:
            return True
        return False

    async def _measure(self, done: Callable[[], None]) -> None:
        async with AsyncExitStack() as stack:
            for client in self._clients:
                await stack.enter_async_context(client)
            models = [model for client in self._clients for model in await client.models()]
            self.classes = [one for model in models for one in model.service_classes]
            self._load = Load(self._plan, self._clients, done)
            await self._load.run()


@contextlib.contextmanager
def _progress(count: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error, where somebody is there to see it."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(length=count, label="requests", show_pos=True, file=sys.stderr) as bar:
        yield lambda: bar.update(1)


def _scrapes(addresses: Sequence[str]) -> list[Scrape]:
    """Raises ConnectionError_ where one does not answer, ConfigurationError where it is none of ours."""
    found = []
    for answer in scrape_all(addresses):
        if isinstance(answer, ConnectionError_):
            raise answer
        if not answer.prefix:
            raise ConfigurationError(f"--metrics: {answer.address} has metrics, but not those of a verifier or drafter")
        found.append(answer)
    return found


def _check_traces(scrapes: Sequence[Scrape]) -> None:
    """Raises ConfigurationError unless all that there are trace."""
    if not scrapes:
        raise ConfigurationError("--trace-out needs the --metrics of at least one daemon that runs with --trace")
    for one in scrapes:
        trace.fetch(one)


def _intervals(before: Sequence[Scrape], addresses: Sequence[str]) -> list[Interval]:
    """What happened at each daemon. One that is gone after the run takes its figures with it, not the others."""
    try:
        after = _scrapes(addresses)
    except ConnectionError_ as error:
        click.echo(f"specfleet: warning: {error}; its figures are left out", err=True)
        return []
    return [Interval(*pair) for pair in zip(before, after, strict=True)]
