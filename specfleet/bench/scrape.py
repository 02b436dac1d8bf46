"""A daemon's Prometheus endpoint: its numbers at one moment, and what happened between two."""

from __future__ import annotations

import http.client
import math
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from specfleet.core.address import is_address
from specfleet.core.errors import ConfigurationError, ConnectionError_

TIMEOUT_SECONDS = 5.0
VERIFIER, DRAFTER = "specfleet_verifier_", "specfleet_drafter_"

Key = tuple[str, frozenset[tuple[str, str]]]
"""A series: its name and its labels."""
Buckets = list[tuple[float, float]]
"""Upper bounds, ascending, and how many observations were at most that."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """All series of one endpoint."""

    address: str
    at: float
    """`time.perf_counter` seconds."""
    series: dict[Key, float]

    @property
    def prefix(self) -> str:
        """Of the daemon's own metrics; "" where it is no daemon of ours."""
        for prefix in (VERIFIER, DRAFTER):
            if any(name.startswith(prefix) for name, _ in self.series):
                return prefix
        return ""

    def total(self, name: str, **labels: str) -> float | None:
        """The sum of the series of that name with these labels; None where there is none."""
        found = [value for key, value in self.series.items() if _matches(key, name, labels)]
        return math.fsum(found) if found else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """The series of that name by the value of one label."""
        return {dict(labels)[label]: value for (found, labels), value in self.series.items() if found == name}


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two scrapes of one endpoint. None is said where a counter is missing or went backwards, for
    then the daemon was restarted and nobody knows."""

    before: Scrape
    after: Scrape

    @property
    def seconds(self) -> float:
        return self.after.at - self.before.at

    def total(self, name: str, **labels: str) -> float | None:
        """By how much counters of that name with these labels rose."""
        found = [self._rise(key) for key in self.after.series if _matches(key, name, labels)]
        return _sum(found) if found else None

    def rate(self, name: str, **labels: str) -> float | None:
        """The same per second."""
        rise = self.total(name, **labels)
        return None if rise is None or self.seconds <= 0.0 else rise / self.seconds

    def mean(self, histogram: str) -> float | None:
        """Mean of what a histogram observed meanwhile; None where it was nothing."""
        return ratio(self.total(f"{histogram}_sum"), self.total(f"{histogram}_count"))

    def buckets(self, histogram: str) -> Buckets | None:
        """What a histogram observed meanwhile, its labels added up."""
        found: dict[float, float] = {}
        for key in self.after.series:
            if key[0] == f"{histogram}_bucket":
                rise, bound = self._rise(key), float(dict(key[1])["le"])
                if rise is None:
                    return None
                found[bound] = found.get(bound, 0.0) + rise
        return sorted(found.items()) or None

    def _rise(self, key: Key) -> float | None:
        """A series that is new began at 0."""
        rise = self.after.series[key] - self.before.series.get(key, 0.0)
        return rise if rise >= 0.0 else None


def scrape(address: str, timeout: float = TIMEOUT_SECONDS) -> Scrape:
    """Raises ConfigurationError for what is no address, ConnectionError_ where nobody answers with metrics there."""
    check_address(address)
    # Without a proxy: the daemons stand in the user's own network, and a proxy would not know them.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}/metrics", timeout=timeout) as reply:
            text = reply.read().decode()
        series = _parse(text)
    except (ValueError, http.client.HTTPException, urllib.error.HTTPError):
        raise ConnectionError_(
            f"{address} answers, but not with metrics; give the address that the daemon says as metrics= when ready"
        ) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError_(
            f"cannot reach metrics at {address}: {getattr(reason, 'strerror', None) or reason}; "
            "is the daemon running, and is this its --metrics address?"
        ) from None
    return Scrape(address, time.perf_counter(), series)


def scrape_all(addresses: Sequence[str]) -> list[Scrape | ConnectionError_]:
    """All at once, in the order given; an endpoint that does not answer is an answer. Raises ConfigurationError."""
    for address in addresses:
        check_address(address)
    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(_scrape, addresses))


def check_address(address: str) -> None:
    """Raises ConfigurationError for what is not HOST:PORT."""
    if not is_address(address):
        raise ConfigurationError(f"--metrics: address {address!r} is not HOST:PORT, such as 127.0.0.1:7601")


def ratio(part: float | None, whole: float | None) -> float | None:
    """None where one is not known, or there is no whole."""
    return None if part is None or not whole else part / whole


def quantile(q: float, buckets: Buckets) -> float | None:
    """The q-quantile (q in [0, 1]) of what was observed, linear within its bucket, as PromQL's histogram_quantile: no more
    exact than the buckets are narrow. Above the last finite bound that bound; None where nothing was observed."""
    count = buckets[-1][1] if buckets else 0.0
    if not count:
        return None
    lower, below = 0.0, 0.0
    for bound, upto in buckets:
        if upto >= q * count and upto > below:
            return lower if math.isinf(bound) else lower + (bound - lower) * (q * count - below) / (upto - below)
        lower, below = bound, upto
    return lower


def merged(histograms: Iterable[Buckets]) -> Buckets:
    """Several histograms with the same bounds as one."""
    found: dict[float, float] = {}
    for buckets in histograms:
        for bound, upto in buckets:
            found[bound] = found.get(bound, 0.0) + upto
    return sorted(found.items())


def _scrape(address: str) -> Scrape | ConnectionError_:
    try:
        return scrape(address)
    except ConnectionError_ as error:
        return error


def _parse(text: str) -> dict[Key, float]:
    return {
        (sample.name, frozenset(sample.labels.items())): float(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _matches(key: Key, name: str, labels: dict[str, str]) -> bool:
    return key[0] == name and labels.items() <= set(key[1])


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None
