"""Daemons' metrics read back: real exporters, what happened between two looks, quantiles of histograms."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter

from specfleet.bench.daemons import DaemonFigures, daemon_figures
from specfleet.bench.fleet import fleet_status
from specfleet.bench.scrape import DRAFTER, VERIFIER, Interval, Scrape, merged, quantile, scrape, scrape_all
from specfleet.core.errors import ConfigurationError, ConnectionError_
from specfleet.core.types import Mode
from specfleet.observability.drafter import DrafterMetrics
from specfleet.observability.registry import MetricsServer
from specfleet.observability.verifier import VerifierGauges, VerifierMetrics
from support.messages import verdict


class Gauges:
    """What a verifier with three sessions would say."""

    def sessions(self) -> dict[str, int]:
        return {"prefill": 1, "generate": 2}

    def queue(self) -> dict[str, int]:
        return {"prefill": 1}

    def kv_pages(self) -> dict[str, int]:
        return {"used": 5, "cached": 3, "free": 92}

    def evictions(self) -> dict[str, int]:
        return {"cache": 0}

    def prefix_cache(self) -> tuple[int, int]:
        return 10, 4

    def __getattr__(self, name: str) -> Any:
        return lambda: 1.0


class Exporter:
    """A daemon's metrics behind its real endpoint."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.server = MetricsServer(self.registry, "127.0.0.1:0")

    @property
    def address(self) -> str:
        return self.server.address

    def look(self) -> Scrape:
        return scrape(self.address)


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    found = Exporter()
    yield found
    found.server.close()


def at(seconds: float, address: str = "x:1", **series: float) -> Scrape:
    """Series without labels at a moment."""
    return Scrape(address, seconds, {(name, frozenset()): value for name, value in series.items()})


def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


# --- looking --------------------------------------------------------------------------------------------------------


def test_labels_are_added_up_or_chosen(exporter: Exporter) -> None:
    """A counter as it stands at the endpoint: in all, by labels, and None where there is none."""
    counter = Counter("apples", "Apples.", ["kind"], registry=exporter.registry)
    counter.labels("red").inc(2)
    counter.labels("green").inc(3)
    found = exporter.look()

    assert (5.0, 2.0, None, None) == (
        found.total("apples_total"),
        found.total("apples_total", kind="red"),
        found.total("apples_total", kind="blue"),
        found.total("pears_total"),
    )
    assert {"red": 2.0, "green": 3.0} == found.by("apples_total", "kind")
    assert found.prefix == ""


def test_nobody_there() -> None:
    """The address, the reason, the way out; among several, an answer like the others."""
    address = closed_port()

    with pytest.raises(ConnectionError_, match=f"cannot reach metrics at {address}: Connection refused; is the daemon"):
        scrape(address)
    assert isinstance(scrape_all([address])[0], ConnectionError_)


@pytest.mark.parametrize("reply", [b"", b"220 hello\r\n", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"])
def test_somebody_else_there(reply: bytes) -> None:
    """What answers with something else is told apart from what does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection = listener.accept()[0]
            with connection:
                connection.recv(4096)
                connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConnectionError_, match="answers, but not with metrics"):
            scrape(f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


@pytest.mark.parametrize("address", ["", "gpu-1", "gpu-1:many", "http://gpu-1:7601", "gpu-1:99999"])
def test_no_address(address: str) -> None:
    """What is not HOST:PORT is refused by name."""
    with pytest.raises(ConfigurationError, match=f"--metrics: address '{address}' is not HOST:PORT"):
        scrape_all(["127.0.0.1:1", address])


# --- between two looks ----------------------------------------------------------------------------------------------


def test_rates_and_means() -> None:
    """Two looks 4 s apart: rises, rates, means."""
    between = Interval(at(1.0, a=10, h_sum=1.0, h_count=2), at(5.0, a=30, h_sum=7.0, h_count=5, new=8))

    assert (4.0, 20.0, 5.0, 2.0) == (between.seconds, between.total("a"), between.rate("a"), between.mean("h"))
    assert (8.0, None, None) == (between.total("new"), between.total("none"), between.rate("none"))


def test_nothing_observed_has_no_mean() -> None:
    """A histogram that stood still: None, not a division by zero."""
    assert Interval(at(0, h_sum=3, h_count=4), at(1, h_sum=3, h_count=4)).mean("h") is None


def test_a_restarted_daemon_is_not_known() -> None:
    """A counter that went backwards says nothing of what happened in between."""
    between = Interval(at(0.0, a=10), at(1.0, a=3))

    assert between.total("a") is between.rate("a") is None


# --- histograms -----------------------------------------------------------------------------------------------------


def test_quantiles_by_hand() -> None:
    """4 observations up to 1, 4 more up to 3, 2 beyond: the median is 1/4 of the way from 1 to 3."""
    buckets = [(1.0, 4.0), (3.0, 8.0), (float("inf"), 10.0)]

    assert [0.5, 1.0, 1.5, 3.0, 3.0, 3.0] == [quantile(q, buckets) for q in (0.2, 0.4, 0.5, 0.8, 0.9, 1.0)]
    assert quantile(0.5, []) is quantile(0.5, [(1.0, 0.0), (float("inf"), 0.0)]) is None


def test_quantiles_are_as_exact_as_the_buckets() -> None:
    """Of many values, within one bucket's width of numpy's."""
    values = np.random.default_rng(3).gamma(2.0, 1.0, 5000)
    bounds = [*np.arange(0.1, 20.0, 0.1), float("inf")]
    buckets = [(float(bound), float((values <= bound).sum())) for bound in bounds]

    for q in (0.01, 0.5, 0.95, 0.99):
        assert abs(np.quantile(values, q) - quantile(q, buckets)) < 0.1


def test_several_verifiers_are_one_histogram() -> None:
    """Buckets add up."""
    assert [(1.0, 3.0), (2.0, 7.0)] == merged([[(1.0, 1.0), (2.0, 3.0)], [(1.0, 2.0), (2.0, 4.0)]])


# --- the daemons' own names -----------------------------------------------------------------------------------------


def test_figures_of_a_verifier(exporter: Exporter) -> None:
    """Steps of 15 ms with 1, 2 and 3 sequences between two looks, what was before left out."""
    metrics = VerifierMetrics(exporter.registry)
    metrics.step(9.0, 9.0, 9, 9)
    metrics.stale(100)
    before = exporter.look()
    for sequences in (1, 2, 3):
        metrics.step(0.015, 0.015, sequences, 10)
    metrics.stale(7)
    between = Interval(before, exporter.look())
    found = daemon_figures([between])

    assert (2.0, 7) == (found.mean_batch, found.stale)
    assert 0.045 / between.seconds == pytest.approx(found.busy)
    assert found.step_s == pytest.approx({"p50": 0.015, "p95": 0.0195, "p99": 0.0199})
    assert found.discarded is found.bytes_up is None


def test_figures_of_a_drafter(exporter: Exporter) -> None:
    """What it dropped, for whatever reason; nothing that only a verifier knows."""
    metrics = DrafterMetrics(exporter.registry)
    before = exporter.look()
    metrics.discarded("overtaken", 3)
    metrics.discarded("contradicted", 4)
    found = daemon_figures([Interval(before, exporter.look())])

    assert (7, None, None, None) == (found.discarded, found.stale, found.busy, found.step_s["p50"])


def test_two_verifiers() -> None:
    """Busy is the mean of theirs; what one of them does not know is not known."""

    def between(busy: float, **more: float) -> Interval:
        series = {f"{VERIFIER}step_seconds_sum": busy, **more}
        return Interval(at(0.0, **dict.fromkeys(series, 0.0)), at(10.0, **series))

    stale = f"{VERIFIER}stale_draft_tokens_total"
    both = daemon_figures([between(2.0, **{stale: 5.0}), between(6.0, **{stale: 6.0})])
    one = daemon_figures([between(2.0, **{stale: 5.0}), between(6.0)])

    assert (0.4, 11, 0.4, None) == (both.busy, both.stale, one.busy, one.stale)


def test_nobody_asked() -> None:
    """No endpoints, no figures."""
    assert DaemonFigures() == daemon_figures([])


# --- status ---------------------------------------------------------------------------------------------------------


def test_status_of_a_verifier(exporter: Exporter) -> None:
    """Gauges at once; rates, means and shares from the second look on. Real exporter, so the names are real too."""
    metrics = VerifierMetrics(exporter.registry)
    exporter.registry.register(VerifierGauges(Gauges()))
    before = exporter.look()
    metrics.step(0.02, 0.02, 2, 8)
    metrics.step(0.02, 0.02, 4, 8)
    metrics.verdict("", verdict(Mode.ROUND, 4, 3, 4), 0.0)
    metrics.verdict("", verdict(Mode.ROUND, 2, 2, 3), 0.0)
    metrics.verdict("", verdict(Mode.LOCAL, 0, 0, 1), 0.0)
    after = exporter.look()
    seconds = after.at - before.at
    first = fleet_status({}, {exporter.address: before})["verifiers"][0]
    row = fleet_status({exporter.address: before}, {exporter.address: after})["verifiers"][0]

    assert {"prefill": 1, "generate": 2} == first["sessions"] == row["sessions"]
    assert ({"prefill": 1}, {"used": 5, "cached": 3, "free": 92}) == (row["queue"], row["kv_pages"])
    assert first["steps_per_s"] is first["mean_batch"] is first["acceptance_rate"] is None
    assert (3.0, 5 / 6, 3.0) == (row["mean_batch"], row["acceptance_rate"], row["mean_drafted_length"])
    expected = {"accepted": 5, "recovered": 1, "bonus": 1, "target_only": 1}
    assert row["tokens_per_s"] == pytest.approx({kind: count / seconds for kind, count in expected.items()})
    assert 2 / seconds == pytest.approx(row["steps_per_s"])


def test_status_of_a_drafter(exporter: Exporter) -> None:
    """Sessions, drafting speed, what was discarded of it, round trips."""
    metrics = DrafterMetrics(exporter.registry)
    before = exporter.look()
    metrics.session_opened()
    metrics.drafted("model", 8, 0.1)
    metrics.discarded("overtaken", 2)
    metrics.round_trip(0.01)
    metrics.round_trip(0.03)
    after = exporter.look()
    found = fleet_status({exporter.address: before}, {exporter.address: after})
    row = found["drafters"][0]

    assert ([], 1, 0.25, 0.02) == (
        found["verifiers"],
        row["sessions"],
        row["discarded_share"],
        pytest.approx(row["round_trip_s"]),
    )
    assert 8 / (after.at - before.at) == pytest.approx(row["drafted_per_s"])


def test_status_says_who_is_missing() -> None:
    """Who does not answer, or is none of ours, has a row with the reason; who comes back has gauges before rates."""
    gone = ConnectionError_("cannot reach y:2")
    back = at(2.0, "y:2", **{f"{DRAFTER}sessions": 3.0, f"{DRAFTER}drafted_tokens_total": 5.0})
    alien = at(2.0, "z:3", go_threads=1.0)
    found = fleet_status({"y:2": gone, "z:3": alien}, {"y:2": back, "z:3": alien, "x:1": gone})

    assert [{"address": "x:1", "error": "cannot reach y:2"}] == found["unreachable"][1:]
    assert "z:3 has metrics, but not specfleet's" == found["unreachable"][0]["error"]
    assert (3, None) == (found["drafters"][0]["sessions"], found["drafters"][0]["drafted_per_s"])
