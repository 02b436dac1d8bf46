"""The tracer, and what others make of what it noted: phases add up, a picture is a valid Chrome trace."""

from __future__ import annotations

import json
import urllib.request
from itertools import count
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from specfleet.bench.breakdown import ROUND, breakdown, check_traced
from specfleet.bench.load import Record
from specfleet.bench.scrape import DRAFTER, VERIFIER, Interval, Scrape, scrape
from specfleet.bench.trace import fetch, write
from specfleet.core.errors import ConfigurationError
from specfleet.core.trace import KEPT, Phase, Tracer
from specfleet.observability.drafter import DrafterMetrics
from specfleet.observability.registry import MetricsServer
from specfleet.observability.trace import traced

STEP = (Phase.PLAN, Phase.BUILD, Phase.FORWARD, Phase.SAMPLING, Phase.ACCEPTANCE, Phase.REPLY)


def ticking(step: float = 1.0) -> Tracer:
    """A tracer whose clock goes on by `step` with every look at it."""
    ticks = count(step, step)
    return Tracer(lambda: next(ticks))


def test_a_step_is_cut_without_a_rest() -> None:
    """Marks follow each other without a gap; rounds are charged with the whole step each, the daemon once."""
    tracer = ticking()
    tracer.start(0.0)
    for phase in STEP:
        tracer.mark(phase)
    tracer.stepped(rounds=3)

    assert dict.fromkeys(STEP, 1.0) == {phase: tracer.seconds[phase] for phase in STEP}
    assert dict.fromkeys(STEP, 3.0) == {phase: tracer.round_seconds[phase] for phase in STEP}
    assert [(phase.value, float(at), 1.0) for at, phase in enumerate(STEP)] == [one[:3] for one in tracer.spans()]


def test_a_step_tried_in_halves_counts_as_one() -> None:
    """The engine's phases come several times then, and add up."""
    tracer = ticking()
    tracer.start(0.0)
    for phase in (Phase.PLAN, Phase.BUILD, Phase.FORWARD, Phase.BUILD, Phase.FORWARD, Phase.REPLY):
        tracer.mark(phase)
    tracer.stepped(rounds=1)

    assert (2.0, 2.0, 1) == (tracer.round_seconds[Phase.BUILD], tracer.seconds[Phase.FORWARD], tracer.rounds)


def test_what_raises_is_timed_all_the_same() -> None:
    tracer = ticking()
    with pytest.raises(ZeroDivisionError):
        tracer.timed(Phase.SERIALIZATION, lambda n: 1 / n, 0)

    assert (1.0, 1) == (tracer.seconds[Phase.SERIALIZATION], tracer.counts[Phase.SERIALIZATION])


def test_memory_is_bounded() -> None:
    tracer = ticking()
    for at in range(KEPT + 5):
        tracer.add(Phase.PLAN, at, at + 1, "steps")

    assert (KEPT, KEPT + 5) == (len(tracer.spans()), tracer.counts[Phase.PLAN])


# --- breakdown ------------------------------------------------------------------------------------------------------


def look(prefix: str, tracer: Tracer, steps: float = 0.0) -> Scrape:
    """What a daemon with this tracer would export."""

    def key(name: str, phase: Phase | None = None) -> tuple[str, frozenset[tuple[str, str]]]:
        return prefix + name, frozenset() if phase is None else frozenset({("phase", phase.value)})

    series = {key("traced_rounds_total"): float(tracer.rounds), key("step_seconds_count"): steps}
    for phase in Phase:
        series[key("phase_seconds_total", phase)] = tracer.seconds[phase]
        series[key("phase_spans_total", phase)] = float(tracer.counts[phase])
        series[key("round_phase_seconds_total", phase)] = tracer.round_seconds[phase]
    return Scrape("127.0.0.1:1", 0.0, series)


def test_a_round_adds_up_to_what_its_drafter_waited() -> None:
    """Two rounds share a step of six seconds, one waited two more for it; the drafters waited twelve and ten, of which
    messages took four each; the rest is the network."""
    verifier, drafter = ticking(), ticking()
    nothing = [look(VERIFIER, verifier), look(DRAFTER, drafter)]
    verifier.start(0.0)
    for phase in STEP:
        verifier.mark(phase)
    verifier.round(Phase.QUEUE, -2.0, 0.0, "session 1")
    verifier.stepped(rounds=2)
    for tracer in (verifier, drafter):
        for _ in range(4):
            tracer.timed(Phase.SERIALIZATION, str, 1)
    drafter.rounds = 2
    for seconds in (12.0, 10.0):
        drafter.round(Phase.DRAFTING, 0.0, 3.0, "generation 1")
        drafter.round(Phase.WAITING, 3.0, 3.0 + seconds, "generation 1")
    after = [look(VERIFIER, verifier, steps=1.0), look(DRAFTER, drafter)]
    found = breakdown([Interval(*pair) for pair in zip(nothing, after, strict=True)])

    expected = dict.fromkeys(STEP, 1.0) | {Phase.DRAFTING: 3.0, Phase.QUEUE: 1.0, Phase.SERIALIZATION: 4.0}
    assert {**expected, Phase.NETWORK: 11.0 - 4.0 - 7.0} == found["round_s"]
    assert [phase.value for phase in ROUND] == list(found["round_s"])
    assert (2, 1, dict.fromkeys(STEP, 1.0)) == (found["rounds"], found["steps"], found["step_s"])


def test_nothing_to_break_down() -> None:
    """Without a round or a step there are no seconds, and no division by zero."""
    found = breakdown([])

    assert (0, 0, {None}) == (found["rounds"], found["steps"], {*found["round_s"].values(), *found["step_s"].values()})


def test_what_does_not_trace_is_named() -> None:
    """A breakdown needs both kinds of daemon, and each of them to trace."""
    quiet = Scrape("127.0.0.1:7701", 0.0, {(f"{DRAFTER}sessions", frozenset()): 0.0})
    verifier = look(VERIFIER, ticking())
    with pytest.raises(ConfigurationError, match="needs the metrics of a drafter"):
        check_traced([verifier])
    with pytest.raises(ConfigurationError, match=r"drafter at 127.0.0.1:7701 does not .* start it with --trace"):
        check_traced([verifier, quiet])
    check_traced([verifier, look(DRAFTER, ticking())])


# --- endpoint and picture -------------------------------------------------------------------------------------------


def test_spans_are_served_beside_the_metrics(tmp_path: Path) -> None:
    """/metrics stays what it was; /trace says spans on the daemon's clock, which a picture puts on ours."""
    registry, plain = CollectorRegistry(), CollectorRegistry()
    DrafterMetrics(registry)
    Counter("specfleet_drafter_apples", "Apples.", registry=plain)
    tracer = traced(registry, "specfleet_drafter", lambda: 1000.0)
    tracer.add(Phase.DRAFTING, 998.0, 999.5, "generation 1", {"tokens": 4})
    tracer.add(Phase.DRAFTING, 1.0, 2.0, "generation 0")  # long before the run
    servers = [MetricsServer(registry, "127.0.0.1:0", tracer), MetricsServer(plain, "127.0.0.1:0")]
    try:
        daemon, other = (scrape(server.address) for server in servers)
        spans = fetch(daemon)
        with pytest.raises(ConfigurationError, match=f"{other.address} has no trace; start the daemon with --trace"):
            fetch(other)
        with urllib.request.urlopen(f"http://{daemon.address}/metrics", timeout=10) as reply:
            text = reply.read().decode()
    finally:
        for server in servers:
            server.close()
    start = 997.0 + spans.ahead
    record = Record(stream=3, begun=0.5, ended=2.5, finished=True)
    path = tmp_path / "trace.json"

    assert 'specfleet_drafter_phase_seconds_total{phase="drafting"} 2.5' in text
    assert 1 == write(path, [spans], [record], start)
    events = json.loads(path.read_text())["traceEvents"]
    (bar,) = (one for one in events if one["ph"] == "X")
    assert (pytest.approx(1e6), pytest.approx(1.5e6), {"tokens": 4}) == (bar["ts"], bar["dur"], bar["args"])
    names = {one["args"]["name"] for one in events if one["ph"] == "M"}
    assert {"requests", "stream 3", "generation 1", f"drafter {daemon.address}"} == names
    assert [5e5, 2.5e6] == [one["ts"] for one in events if one["ph"] in "be"]
    with pytest.raises(ConfigurationError, match=r"cannot write the trace .*: No such file"):
        write(tmp_path / "none" / "trace.json", [], [], 0.0)
