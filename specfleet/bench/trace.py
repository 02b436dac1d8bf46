"""The daemons' spans and the requests of a run as one Chrome trace, on one clock."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specfleet.bench.load import Record
from specfleet.bench.scrape import TIMEOUT_SECONDS, Scrape
from specfleet.core.chrome import ChromeWriter
from specfleet.core.errors import ConfigurationError

REQUESTS = "requests"


@dataclass(frozen=True, slots=True)
class Spans:
    """What one daemon kept."""

    daemon: str
    ahead: float
    """What to add to its times to get `time.perf_counter` here; off by half of what asking took, at most."""
    spans: list[tuple[str, float, float, str, dict[str, Any] | None]]
    """(name, start, seconds, lane, about)"""


def fetch(daemon: Scrape) -> Spans:
    """Raises ConfigurationError where it does not trace."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = time.perf_counter()
    try:
        with opener.open(f"http://{daemon.address}/trace", timeout=TIMEOUT_SECONDS) as reply:
            body = reply.read()
        came = time.perf_counter()
        found = json.loads(body)
        spans = [(str(n), float(start), float(s), str(lane), about) for n, start, s, lane, about in found["spans"]]
        now = float(found["clock"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigurationError(
            f"{daemon.address} has no trace; start the daemon with --trace, and give its --metrics address"
        ) from None
    kind = daemon.prefix.removeprefix("specfleet_").rstrip("_")
    return Spans(f"{kind} {daemon.address}", (asked + came) / 2 - now, spans)


def write(path: Path, daemons: Sequence[Spans], records: Sequence[Record], start: float) -> int:
    """Write what happened since `start` (`time.perf_counter`), when the run began; returns the number of spans. Raises
    ConfigurationError where the file cannot be written."""
    written = 0
    with ChromeWriter(path, [REQUESTS, *(one.daemon for one in daemons)]) as chrome:
        for number, record in enumerate(records):
            about = {"tokens": record.tokens, "class": record.service_class, "finished": record.finished}
            chrome.request(REQUESTS, f"stream {record.stream}", number, "request", record.begun, record.ended, about)
        for one in daemons:
            for name, began, seconds, lane, about_span in one.spans:
                at = began + one.ahead - start
                if at >= 0.0:
                    chrome.span(one.daemon, lane, name, at, seconds, about_span)
                    written += 1
    return written
