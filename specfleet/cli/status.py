"""`specfleet status`: a live table of the fleet, read from its daemons' metrics."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import click

from specfleet.bench.fleet import TOKEN_KINDS, Look, fleet_status
from specfleet.bench.scrape import scrape_all
from specfleet.cli.screen import screen
from specfleet.cli.table import cell, fitted
from specfleet.core.errors import ConnectionError_

DEFAULT = ("127.0.0.1:7601", "127.0.0.1:7701")
DEFINITIONS = (
    "rates and means are of the last interval; batch: sequences per step; draft: drafted tokens per round; acceptance:\n"
    "accepted / drafted and verified; accepted to goodput: tokens per second; pages of KV cache: used/cached/free"
)
VERIFIER_HEADER = (
    "verifier",
    "sessions",
    "queue",
    "steps/s",
    "batch",
    "draft",
    "acceptance",
    *(kind.replace("_", "-") for kind in TOKEN_KINDS),
    "goodput",
    "pages",
)
PAGES = ("used", "cached", "free")
DRAFTER_HEADER = ("drafter", "sessions", "drafted/s", "discarded", "round trip ms")
MAX_INTERVAL = 3600


@click.command("status")
@click.option(
    "--metrics",
    "addresses",
    multiple=True,
    metavar="HOST:PORT",
    default=DEFAULT,
    show_default=True,
    help="Metrics of a verifier or a drafter; repeatable.",
)
@click.option("--interval", type=float, default=2.0, show_default=True, metavar="SECONDS", help="Between two looks.")
@click.option("--once", is_flag=True, help="One table of one interval, then end.")
@click.option("--json", "as_json", is_flag=True, help="One object per table, on a line of its own, instead of it.")
def command(addresses: tuple[str, ...], interval: float, once: bool, as_json: bool) -> None:
    """Watch a running fleet: sessions, batches, acceptance, tokens, pages.

    \b
    specfleet status
    specfleet status --metrics gpu-1:7601 --metrics edge-1:7701 --interval 5
    specfleet status --once --json

    Ctrl-C ends it.
    """
    if not 0.0 < interval <= MAX_INTERVAL:
        raise click.UsageError(f"--interval is {interval:g}, must be above 0 and at most {MAX_INTERVAL} seconds")
    live = sys.stdout.isatty() and not once and not as_json
    with screen() if live else nullcontext(click.echo) as show:
        for status in _statuses(tuple(dict.fromkeys(addresses)), interval, once):
            show(json.dumps(status) if as_json else _tables(status, _width()))
            if once:
                _check_answered(status)


def _width() -> int:
    """Columns that a table may have."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


def _statuses(addresses: Sequence[str], interval: float, once: bool) -> Iterator[dict[str, Any]]:
    """One after each interval; before the first one, what can be said at once where somebody is watching. Raises
    ConnectionError_ if nobody answers in the beginning; later the fleet may come back."""
    before = _look(addresses)
    first = fleet_status({}, before)
    if not once or not _answered(first):
        yield first
        _check_answered(first)
    while True:
        time.sleep(interval)
        after = _look(addresses)
        yield fleet_status(before, after)
        if once:
            return
        before = after


def _look(addresses: Sequence[str]) -> Look:
    return dict(zip(addresses, scrape_all(addresses), strict=True))


def _answered(status: dict[str, Any]) -> bool:
    return bool(status["verifiers"] or status["drafters"])


def _check_answered(status: dict[str, Any]) -> None:
    if not _answered(status):
        raise ConnectionError_(f"no daemon answers with its metrics: {status['unreachable'][0]['error']}")


def _tables(status: dict[str, Any], width: int) -> str:
    parts = []
    if status["verifiers"]:
        parts.append(fitted(VERIFIER_HEADER, [_verifier(row) for row in status["verifiers"]], width))
    if status["drafters"]:
        parts.append(fitted(DRAFTER_HEADER, [_drafter(row) for row in status["drafters"]], width))
    parts.extend(f"unreachable: {row['error']}" for row in status["unreachable"])
    if _answered(status):
        parts.append(DEFINITIONS)
    return "\n\n".join(parts)


def _verifier(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["address"],
        str(sum(row["sessions"].values())),
        str(sum(row["queue"].values())),
        cell(row["steps_per_s"], ".1f"),
        cell(row["mean_batch"], ".2f"),
        cell(row["mean_drafted_length"], ".2f"),
        cell(row["acceptance_rate"], ".2f"),
        *(cell(row["tokens_per_s"][kind], ".1f") for kind in TOKEN_KINDS),
        cell(row["goodput_tokens_per_s"], ".1f"),
        "/".join(str(row["kv_pages"].get(state, "–")) for state in PAGES),
    )


def _drafter(row: dict[str, Any]) -> tuple[str, ...]:
    round_trip = row["round_trip_s"]
    return (
        row["address"],
        cell(row["sessions"], "d"),
        cell(row["drafted_per_s"], ".1f"),
        cell(row["discarded_share"], ".1%"),
        cell(None if round_trip is None else round_trip * 1000.0, ".1f"),
    )
