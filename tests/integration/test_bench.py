"""`specfleet bench` and `specfleet status` on real daemons."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specfleet.core.trace import Phase
from support.daemons import Daemon, fleet, running, start_drafter, start_verifier
from support.pair import OWN_PROMPTS

Fleet = tuple[Daemon, ...]
LONG = ("--requests", "200", "--max-tokens", "200")
LOAD = ("--requests", "12", "--concurrency", "4", "--max-tokens", "24", "--ignore-eos", "--prompts", str(OWN_PROMPTS))


@pytest.fixture(scope="module")
def daemons() -> Iterator[Fleet]:
    """A verifier that asks for four tokens a round, a model drafter and an n-gram drafter."""
    with fleet("--speculation", "fixed:4") as found:
        yield found


def specfleet(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The packaged command, run to its end."""
    command = [str(Path(sys.executable).parent / "specfleet"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def endpoints(daemons: Fleet) -> list[str]:
    return [part for daemon in daemons for part in ("--metrics", daemon.said("metrics"))]


def bench(daemons: Fleet, *arguments: str) -> Any:
    servers = [part for drafter in daemons[1:] for part in ("--server", drafter.address)]
    found = specfleet("bench", *servers, *endpoints(daemons), *LOAD, *arguments, "--json")
    assert (0, "") == (found.returncode, found.stderr), found.stderr
    return json.loads(found.stdout.splitlines()[-1])


def test_client_and_daemons_agree(daemons: Fleet) -> None:
    """What clients count equals what the verifier counts, and every figure is there and possible."""
    verifier = daemons[0]
    names = ("rounds_total", "draft_tokens_total", "accepted_tokens_total", "step_seconds_count")
    before = {name: verifier.metric(f"specfleet_verifier_{name}") for name in names}
    found = bench(daemons)
    rounds, drafted, accepted, steps = (verifier.metric(f"specfleet_verifier_{name}") - before[name] for name in names)

    assert (12 * 24, 4, "fixed:4", 0) == (found["tokens"], found["clients"], found["policy"], found["failures"])
    assert (rounds, accepted / drafted) == (found["rounds"], pytest.approx(found["acceptance_rate"]))
    assert drafted - accepted == found["wasted_draft_tokens"]["refused"]
    assert found["mean_accepted_length"] - 1 == pytest.approx(sum(found["accepted_per_position"]))
    assert found["accepted_per_position"] == sorted(found["accepted_per_position"], reverse=True)
    assert steps > 0 and 0.0 < found["verifier"]["busy"] <= 1.0 and 1.0 <= found["verifier"]["mean_batch"] <= 4.0
    assert found["verifier"]["step_s"]["p50"] <= found["verifier"]["step_s"]["p99"]
    assert found["wasted_draft_tokens"]["stale"] >= 0 and found["wasted_draft_tokens"]["discarded"] >= 0
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        assert 0.0 < found[name]["p50"] <= found[name]["p95"] <= found[name]["p99"]
    assert found["min_tokens_per_s"] <= found["geomean_tokens_per_s"] < found["tokens_per_s"]
    assert 0.25 < found["jain"] <= 1.0


def test_poisson_arrivals(daemons: Fleet) -> None:
    """The open loop takes as long as its arrivals do, each request a stream."""
    found = bench(daemons, "--rate", "6", "--seed", "1", "--temperature", "1")

    assert (12, 1, 12 * 24) == (found["clients"], found["seed"], found["tokens"])
    assert found["duration_s"] > 0.5


def test_an_unknown_class_is_the_servers_refusal(daemons: Fleet) -> None:
    """Exit code 2 and the server's own words; mixed with a known one it is counted as failures."""
    drafter = daemons[1].address
    refused = specfleet("bench", "--server", drafter, "--requests", "2", "--slo", "platinum")
    mixed = specfleet("bench", "--server", drafter, "--requests", "2", "--slo", "platinum", "--slo", "", "--json")
    figures = json.loads(mixed.stdout.splitlines()[-1])

    assert (2, 1) == (refused.returncode, refused.stderr.count("\n"))
    assert "'platinum'" in refused.stderr
    assert (0, 1) == (mixed.returncode, figures["failures"])
    assert {"": 1.0, "platinum": 0.0} == {name: kept["attained"] for name, kept in figures["slo"].items()}


def test_status_under_load(daemons: Fleet) -> None:
    """While requests run, the fleet's rows show steps, tokens and drafting; what the daemons export is all read."""
    verifier, drafter, _ = daemons
    load = subprocess.Popen(
        [sys.executable, "-m", "specfleet.cli.main", "bench", "--server", drafter.address, *LONG],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        found = specfleet("status", *endpoints(daemons), "--once", "--json", "--interval", "6")
    finally:
        load.terminate()
        load.wait()
    status = json.loads(found.stdout.splitlines()[-1])
    row, drafting = status["verifiers"][0], status["drafters"][0]

    assert (0, []) == (found.returncode, status["unreachable"])
    assert [verifier.said("metrics"), 2] == [row["address"], len(status["drafters"])]
    assert row["steps_per_s"] > 0 and row["tokens_per_s"]["accepted"] > 0 and 0 < row["acceptance_rate"] <= 1
    assert row["mean_batch"] >= 1 and sum(row["sessions"].values()) >= 1 and sum(row["kv_pages"].values()) > 0
    assert drafting["drafted_per_s"] > 0 and drafting["round_trip_s"] > 0 and 0 <= drafting["discarded_share"] <= 1


def test_where_the_time_of_rounds_goes(tmp_path: Path) -> None:
    """With --trace a round's phases add up to the time between its verdicts, a step's to its duration, and the trace has a bar
    for every phase of each daemon; without it nothing of that is exported."""
    path = tmp_path / "trace.json"
    with running(start_verifier("--speculation", "fixed:4", "--trace")) as verifier:
        with running(start_drafter(verifier, "--no-ahead", "--trace")) as drafter:
            found = bench((verifier, drafter), "--breakdown", "--trace-out", str(path))
            parts, events = found["breakdown"], json.loads(path.read_text())["traceEvents"]
            steps = verifier.metric("specfleet_verifier_step_seconds_sum")
        with running(start_drafter(verifier)) as silent:
            refused = specfleet("bench", "--server", silent.address, *endpoints((verifier, silent)), "--breakdown")
    rounds, step = parts["round_s"], parts["step_s"]

    assert 2 == refused.returncode and "start it with --trace" in refused.stderr
    assert all(seconds >= 0.0 for seconds in (*rounds.values(), *step.values())), parts
    assert min(rounds["drafting"], rounds["forward"], rounds["serialization"], step["build"], step["sampling"]) > 0.0
    assert 0 < parts["rounds"] <= found["rounds"]
    # What the daemon calls a step is what the engine does, and the way there and back.
    engine = sum(step[phase] for phase in ("build", "forward", "sampling", "acceptance"))
    assert engine * parts["steps"] == pytest.approx(steps, rel=0.2)
    # Four lanes, each nearly always in a round.
    in_rounds = sum(rounds.values()) * parts["rounds"]
    assert 0.5 * 4 < in_rounds / found["duration_s"] <= 4.0
    drawn = {one["name"] for one in events if one["ph"] == "X"}
    assert {phase.value for phase in Phase} - {"network"} == drawn
