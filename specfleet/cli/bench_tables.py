"""What `specfleet bench` prints for people."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import click

from specfleet.bench.breakdown import DEFINITIONS as BREAKDOWN_DEFINITIONS
from specfleet.bench.figures import DEFINITIONS
from specfleet.bench.load import Record
from specfleet.cli.table import cell, table

SHOWN_POSITIONS = 8


def show(found: dict[str, Any], records: Sequence[Record], planned: int) -> None:
    """One run."""
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


def show_breakdown(found: dict[str, Any]) -> None:
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


def show_sweep(load: str, runs: Sequence[tuple[float, dict[str, Any]]]) -> None:
    """All runs of a sweep over `load`, a line each."""
    header = (
        load,
        "tokens/s",
        "goodput tok/s",
        "requests/s kept",
        "attained",
        "ttft p50",
        "p95 ms",
        "tpot p50",
        "p95 ms",
    )
    click.echo()
    click.echo(table(header, [_sweep_row(at, found) for at, found in runs]))


def _sweep_row(at: float, found: dict[str, Any]) -> tuple[str, ...]:
    requests = sum(kept["requests"] for kept in found["slo"].values())
    good = sum(kept["requests"] * kept["attained"] for kept in found["slo"].values())
    return (
        f"{at:g}",
        f"{found['tokens_per_s']:.1f}",
        f"{found['goodput_tokens_per_s']:.1f}",
        f"{found['goodput_requests_per_s']:.2f}",
        f"{good / requests:.1%}" if requests else "–",
        *(_ms(found[name][percent]) for name in ("ttft_s", "tpot_s") for percent in ("p50", "p95")),
    )
