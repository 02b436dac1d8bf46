"""`specfleet bench`: load on a running fleet, and what its users would have seen."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click

from specfleet.bench import trace
from specfleet.bench.arrivals import poisson
from specfleet.bench.breakdown import DEFINITIONS as BREAKDOWN_DEFINITIONS
from specfleet.bench.breakdown import breakdown as phases
from specfleet.bench.breakdown import check_traced
from specfleet.bench.daemons import daemon_figures
from specfleet.bench.figures import DEFINITIONS, figures
from specfleet.bench.load import Load, Plan, Record, Request
from specfleet.bench.prompts import read_prompts
from specfleet.bench.scrape import Interval, Scrape, scrape_all
from specfleet.cli.demo import PROMPTS
from specfleet.cli.server import call_options, client_arguments, server_option
from specfleet.cli.table import cell, table
from specfleet.client import AsyncClient
from specfleet.core.errors import ConfigurationError, ConnectionError_
from specfleet.core.types import SamplingParams, ServiceClass

INTERRUPTED = 130
LANES = 8
SHOWN_POSITIONS = 8


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
    type=float,
    metavar="R|inf",
    help="Open loop: Poisson arrivals, R requests per second; inf: all at once, or as --concurrency lets them.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Closed loop: N streams, each with one request at a time; with --rate R, most requests at a time.  "
    f"[default: {LANES}; with --rate no limit]",
)
@click.option("--max-tokens", type=int, default=64, show_default=True, metavar="N", help="Length of each completion.")
@click.option("--temperature", type=float, default=0.0, show_default=True, metavar="X", help="0: the likeliest token.")
@click.option("--ignore-eos", is_flag=True, help="Every completion as long as --max-tokens.")
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", help="Of the arrivals; given, request i is seeded with N + i."
)
@click.option(
    "--slo", "classes", multiple=True, metavar="CLASS", help="Service class; repeat it and requests take them in turn."
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
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one object on the last line, too.")
def command(
    metrics: tuple[str, ...], breakdown: bool, trace_out: Path | None, as_json: bool, **flags: Any
) -> int | None:
    """Put load on a running fleet and print what its users would have seen.

    \b
    specfleet bench --requests 64 --concurrency 8
    specfleet bench --server edge-1:7700 --server edge-2:7700 --prompts prompts.jsonl --rate 4
    specfleet bench --slo interactive --slo batch --metrics 127.0.0.1:7601 --metrics 127.0.0.1:7701 --json

    Ctrl-C ends it and prints what was measured so far.
    """
    began = time.perf_counter()
    plan = _plan(flags)
    fleet = _Fleet(flags.pop("servers"), client_arguments(flags), plan)
    before = _scrapes(metrics)
    if breakdown:
        check_traced(before)
    if trace_out is not None:
        _check_traces(before)
    interrupted = fleet.measure()
    intervals = _intervals(before, metrics)
    daemons = daemon_figures(intervals)
    if any(record.tokens for record in fleet.records):
        wall_s = time.perf_counter() - began
        found = figures(
            fleet.records, fleet.classes, daemons, streams=plan.streams, seed=flags["seed"] or 0, wall_s=wall_s
        )
        _show(found, fleet.records, len(plan.requests))
        if breakdown:
            found["breakdown"] = parts = phases(intervals)
            _show_breakdown(parts)
        if trace_out is not None:
            written = trace.write(trace_out, [trace.fetch(one) for one in before], fleet.records, fleet.began)
            click.echo(f"\n{written} spans in {trace_out}, for ui.perfetto.dev or chrome://tracing")
        if as_json:
            click.echo(json.dumps(found))
    if interrupted:
        return INTERRUPTED
    if not any(record.finished for record in fleet.records):
        raise next(record.error for record in fleet.records if record.error is not None)
    return None


def _plan(flags: dict[str, Any]) -> Plan:
    """Raises what `--prompts`, `--rate` and SamplingParams are refused with."""
    rate, lanes, count, seed = (flags[name] for name in ("rate", "concurrency", "requests", "seed"))
    if rate is not None and not rate > 0.0:
        raise click.UsageError(f"--rate is {rate:g}, must be above 0 requests per second, or inf")
    prompts = itertools.cycle(read_prompts(flags["file"]) if flags["file"] else PROMPTS)
    classes = itertools.cycle(flags["classes"] or ("",))
    open_loop = rate is not None and math.isfinite(rate)
    moments: Sequence[float | None] = poisson(rate, count, seed or 0) if open_loop else [None] * count
    requests = tuple(
        Request(next(prompts), _sampling(flags, number), next(classes), due) for number, due in enumerate(moments)
    )
    if lanes is None:
        lanes = LANES if rate is None else count
    return Plan(requests, lanes, closed=rate is None or (not open_loop and flags["concurrency"] is not None))


def _sampling(flags: dict[str, Any], number: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=flags["max_tokens"],
        temperature=flags["temperature"],
        ignore_eos=flags["ignore_eos"],
        seed=None if flags["seed"] is None else flags["seed"] + number,
    )


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


# --- what people read ------------------------------------------------------------------------------------------------


def _show(found: dict[str, Any], records: Sequence[Record], planned: int) -> None:
    finished = sum(record.finished for record in records)
    click.echo(
        f"{finished} of {planned} requests in {found['clients']} streams, {found['tokens']} tokens in "
        f"{found['duration_s']:.1f} s; policy {found['policy'] or '–'}, seed {found['seed']}\n"
    )
    click.echo(_times(found))
    click.echo()
    for name, text in _lines(found):
        click.echo(f"{name:<14}{text}")
    first = next((record.error for record in records if record.error is not None), None)
    if first is not None:
        click.echo(f"{'failures':<14}{found['failures']}, the first: {first}")
    click.echo()
    for definition in DEFINITIONS:
        click.echo(definition)


def _show_breakdown(found: dict[str, Any]) -> None:
    click.echo()
    for what, count in (("round", found["rounds"]), ("step", found["steps"])):
        seconds = found[f"{what}_s"]
        known = [value for value in seconds.values() if value is not None]
        if not known:
            click.echo(f"no {what} in this run to break down")
            continue
        whole = math.fsum(known)
        rows = [(phase, cell(value * 1e3, ".3f"), f"{value / whole:.1%}") for phase, value in seconds.items()]
        click.echo(table((f"mean {what} of {count}", "ms", "share"), [*rows, ("all", cell(whole * 1e3, ".3f"), "")]))
        click.echo()
    for definition in BREAKDOWN_DEFINITIONS:
        click.echo(definition)


def _times(found: dict[str, Any]) -> str:
    rows = {"ttft": found["ttft_s"], "tpot": found["tpot_s"], "e2e": found["e2e_s"]}
    if found["verifier"]["busy"] is not None:
        rows["step"] = found["verifier"]["step_s"]
    header = ("milliseconds", "p50", "p95", "p99")
    return table(header, [(name, *(_ms(row[percent]) for percent in header[1:])) for name, row in rows.items()])


def _ms(seconds: float | None) -> str:
    return cell(None if seconds is None else seconds * 1000.0, ".1f")


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "tokens/s", f"{found['tokens_per_s']:.1f}"
    yield (
        "per stream",
        f"geometric mean {cell(found['geomean_tokens_per_s'], '.1f')}, least {cell(found['min_tokens_per_s'], '.1f')} "
        f"tokens/s, Jain's index {cell(found['jain'], '.3f')}",
    )
    yield "goodput", f"{found['goodput_requests_per_s']:.2f} requests/s, {found['goodput_tokens_per_s']:.1f} tokens/s"
    for name, kept in found["slo"].items():
        yield f"class {name}" if name else "no class", f"{kept['requests']} requests, {kept['attained']:.1%} attained"
    places = " ".join(f"{share:.2f}" for share in found["accepted_per_position"][:SHOWN_POSITIONS])
    yield (
        "speculation",
        f"acceptance {cell(found['acceptance_rate'], '.3f')}, mean accepted length "
        f"{cell(found['mean_accepted_length'], '.2f')}, {found['rounds']} rounds, by position {places or '–'}",
    )
    wasted = found["wasted_draft_tokens"]
    yield "wasted drafts", ", ".join(f"{name} {cell(count, 'd')}" for name, count in wasted.items())
    verifier = found["verifier"]
    if verifier["busy"] is not None:
        yield "verifier", f"busy {verifier['busy']:.1%}, mean batch {cell(verifier['mean_batch'], '.2f')} sequences"
    if found["resumes"]:
        yield "resumes", str(found["resumes"])
