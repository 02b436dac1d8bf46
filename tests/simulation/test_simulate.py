"""Whole runs: the same seed gives the same figures, nothing is lost or counted twice, figures answer to what they should."""

from __future__ import annotations

import csv
import gc
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from simulator.baselines import policy
from simulator.counters import Row
from simulator.document import checked, find, read
from simulator.figures import figures
from simulator.play import Played, play
from simulator.search import capacity, cells
from simulator.watch import Nowhere
from specfleet.cli.main import main
from specfleet.core.protocol import Verdict

FILE = Path("fleet.yaml")
POLICIES = (
    *("fair-goodput", "goodspeed:8", "smartspec", "awc", "ladder", "fixed:4", "stream", "random", "none"),
    *("centralized", "sled", "barrier", "fixed:3+fifo", "fair-goodput+length-aware"),
)


def fleet(**sections: Any) -> dict[str, Any]:
    """Three tiers on two verifiers; sections replace its own."""
    return {
        "duration": 4,
        "warm_up": 1,
        "routing": "jsq",
        "tiers": {
            "near": {"count": 3, "draft_seconds": 0.004, "acceptance": 0.8, "network": {"round_trip": 0.004}},
            "far": {"count": 2, "acceptance": 0.6, "network": {"up": 0.05, "down": 0.03, "jitter": 0.004}},
            "shared": {"count": 1, "streams": 3, "identity": "tier", "acceptance": {"uniform": [0.3, 0.9]}},
        },
        "verifiers": {"gpu": {"count": 2, "profile": "qwen3-8b-rtx4090", "kv_tokens": 4000, "max_step_tokens": 128}},
        "workload": {
            "closed_loop": {"think_seconds": {"log_normal": {"mean": 0.2, "cv": 0.6}}},
            "prompt_tokens": {"log_uniform": [8, 400]},
            "output_tokens": {"uniform": [1, 60]},
        },
        **sections,
    }


def played(document: dict[str, Any], name: str = "fair-goodput", seed: int = 0, **more: Any) -> Played:
    return play(checked(document, FILE), policy(name), seed, **more)


def told(document: dict[str, Any], name: str = "fair-goodput", seed: int = 0) -> dict[str, Any]:
    return figures(played(document, name, seed), 0.0)


@pytest.mark.parametrize("name", POLICIES)
def test_nothing_is_lost_under_any_policy(name: str) -> None:
    """`play` itself checks texts, books, pages and ends; here that the figures say so."""
    found = told(fleet(), name)
    books = found["whole_run"]
    assert books["drafted"] == books["accepted"] + books["refused"] + books["stale"] + books["discarded"]
    assert found["requests"]["issued"] == found["requests"]["finished"] > 10
    assert found["failures"] == 0
    assert found["tokens"] > 0
    assert (books["drafted"] == 0) == (name in ("none", "centralized"))


@pytest.mark.parametrize("name", ["fair-goodput", "random", "barrier"])
def test_the_same_seed_gives_the_same_figures(name: str) -> None:
    """All of them but the wall time; another seed gives others."""
    first = json.dumps(told(fleet(), name, 3))
    assert first == json.dumps(told(fleet(), name, 3))
    assert first != json.dumps(told(fleet(), name, 4))


def test_a_stream_that_cannot_get_ahead_costs_the_verifier_nothing() -> None:
    """Hardly anything is sent of what the verifier will have written before it gets there, and not much is drafted; a stream
    nearby has its drafts accepted as ever."""
    workload = {"closed_loop": {}, "output_tokens": 200, "prompt_tokens": 8}

    def books(round_trip: float) -> dict[str, int]:
        tiers = {
            "laptop": {"count": 1, "draft_seconds": 0.003, "acceptance": 0.5, "network": {"round_trip": round_trip}}
        }
        found: dict[str, int] = told(fleet(tiers=tiers, workload=workload, duration=20), "stream")["whole_run"]
        return found

    near, far = books(0.01), books(0.6)
    assert near["accepted"] > 100
    assert far["accepted"] + far["refused"] == 0
    assert far["stale"] < 0.5 * far["tokens"]
    assert far["drafted"] < 4.0 * far["tokens"]


def test_every_drafted_token_counts_once_when_accepted() -> None:
    """Acceptance 1: every round commits its draft and a bonus token."""
    tiers = {"near": {"count": 1, "acceptance": 1.0, "draft_seconds": 0.001, "network": {"round_trip": 0.002}}}
    workload = {"closed_loop": {}, "output_tokens": 50, "prompt_tokens": 8}
    found = told(fleet(tiers=tiers, workload=workload), "fixed:4")
    assert found["acceptance_rate"] == 1.0
    assert 5.0 == pytest.approx(found["mean_accepted_length"], rel=0.03)  # a text's last round is shorter
    books = found["whole_run"]
    assert books["tokens"] == books["accepted"] + books["verdicts"]
    assert [1.0] * 4 == pytest.approx(found["accepted_per_position"], abs=0.11)


def test_latency_answers_to_acceptance() -> None:
    """Right guesses shorten the time per token; target-only does not care."""

    def tpot(acceptance: float, name: str) -> float:
        tiers = {"near": {"count": 2, "acceptance": acceptance, "draft_seconds": 0.002}}
        return told(fleet(tiers=tiers), name)["tpot_s"]["p50"]

    low, high = tpot(0.2, "fixed:4"), tpot(0.9, "fixed:4")
    assert high < 0.5 * low
    assert tpot(0.2, "centralized") == pytest.approx(tpot(0.9, "centralized"), rel=0.02)


def test_latency_is_over_delivered_tokens() -> None:
    """A lone user of target-only decoding gets a token a step: TPOT is its time, and TTFT holds both ways and prefill."""
    tiers = {"one": {"count": 1, "network": {"up": 0.1, "down": 0.2}}}
    verifiers = {"gpu": {"profile": {"fixed": 0.02, "per_token": 0.0}, "noise": 0.0}}
    found = told(fleet(tiers=tiers, verifiers=verifiers, workload={"closed_loop": {}, "output_tokens": 20}), "none")
    assert 0.02 == pytest.approx(found["tpot_s"]["p50"], rel=1e-6)
    assert 0.32 == pytest.approx(found["ttft_s"]["p50"], rel=1e-6)


def test_acceptance_drifts() -> None:
    tiers = {"near": {"count": 2, "acceptance": 0.9, "drift": [[1.9, 0.0], [2.0, -0.8]], "draft_seconds": 0.002}}
    found = played(fleet(tiers=tiers, duration=4), "fixed:4")
    early = [row for row in found.rows if row.last is not None and row.last < 1.9]
    late = [row for row in found.rows if row.issued > 2.0]
    assert sum(row.accepted for row in early) > 0.6 * sum(row.verified for row in early)
    assert sum(row.accepted for row in late) < 0.3 * sum(row.verified for row in late)


def test_a_cold_start_and_an_absence_are_felt() -> None:
    tiers = {
        "cold": {"count": 1, "cold_start": 1.5, "acceptance": 1.0, "draft_seconds": 0.001},
        "away": {"count": 1, "availability": {"windows": [[2.0, 3.0]]}},
    }
    found = played(fleet(tiers=tiers, warm_up=0, workload={"closed_loop": {}, "output_tokens": 20}), "fixed:4")
    first = min((row for row in found.rows if row.tier == "cold"), key=lambda row: row.issued)
    assert first.e2e > 1.0
    assert all(2.0 <= row.issued <= 3.0 for row in found.rows if row.tier == "away")
    assert any(row.tier == "away" for row in found.rows)


def test_bytes_are_few_and_grow_with_prompts() -> None:
    short, long = (
        told(fleet(workload={"closed_loop": {}, "prompt_tokens": size, "output_tokens": 30}))["bytes_up"]
        / told(fleet(workload={"closed_loop": {}, "prompt_tokens": size, "output_tokens": 30}))["requests"]["issued"]
        for size in (50, 1000)
    )
    assert long - short > 0.5 * 3 * 950


def test_prefixes_are_reused_where_there_is_a_cache() -> None:
    workload = {"poisson": {"rate": 10}, "prompt_tokens": 300, "output_tokens": 8, "prefix": {"tokens": 256}}

    def cached(on: bool) -> tuple[int, float]:
        verifiers = {"gpu": {"profile": "tiny-pair-cpu", "prefix_cache": on, "kv_tokens": 20_000}}
        found = played(fleet(verifiers=verifiers, workload=workload), "none")
        return sum(row.cached for row in found.rows), figures(found, 0.0)["ttft_s"]["p50"]

    (none, slow), (many, fast) = cached(False), cached(True)
    assert none == 0
    assert many > 1000
    assert fast < 0.6 * slow


def test_every_row_of_a_trace_is_issued_or_reported(tmp_path: Path) -> None:
    lines = [f'{{"timestamp": {at * 500}, "input_length": 40, "output_length": 6}}' for at in range(12)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    found = figures(played(fleet(workload={"trace": {"file": "t.jsonl"}}), folder=tmp_path), 0.0)
    assert (8, 4) == (found["requests"]["issued"], found["requests"]["not_issued"])


def test_refused_requests_end_once_and_count_as_failures() -> None:
    """A verifier for one session at a time, and five that want to talk at once."""
    verifiers = {"gpu": {"profile": "qwen3-8b-rtx4090", "max_sessions": 1}}
    workload = {"poisson": {"rate": 5}, "output_tokens": 120, "retries": 1}
    found = told(fleet(verifiers=verifiers, workload=workload), "none")
    assert found["requests"]["refused"] > 0
    assert found["requests"]["issued"] == found["requests"]["finished"] + found["requests"]["refused"]
    assert found["failures"] > 0


class Breaks(Nowhere):
    """Fails in the middle of a request."""

    def __init__(self) -> None:
        self.left = 40

    def round(self, now: float, row: Row, verdict: Verdict) -> None:
        self.left -= 1
        if not self.left:
            raise ValueError("the fortieth verdict")


def test_a_bug_ends_the_run_and_is_told() -> None:
    """Those who ask again and again must not go on asking then."""
    document = fleet(workload={"closed_loop": {}, "output_tokens": 60, "prompt_tokens": 8})
    with pytest.raises(ValueError, match="the fortieth verdict"):
        played(document, sinks=[Breaks()])


def test_classes_are_judged_by_what_users_saw() -> None:
    document = fleet(
        classes={"easy": {"tpot": 10.0}, "impossible": {"tpot": 0.001}},
        workload={"closed_loop": {}, "output_tokens": 20, "classes": {"easy": 1, "impossible": 1}},
    )
    slo = told(document, "none+fifo")["slo"]
    assert slo["easy"]["attained"] == 1.0
    assert slo["impossible"]["attained"] == 0.0


def test_loads_are_spread_over_verifiers() -> None:
    rows = played(fleet()).rows
    shares = [sum(row.verifier == f"gpu-{number}" for row in rows) / len(rows) for number in range(2)]
    assert all(0.3 < share < 0.7 for share in shares)


def test_a_barrier_waits_for_its_slowest_member() -> None:
    """One slow drafter among fast ones costs everybody, and only with the barrier."""
    tiers = {
        "fast": {"count": 3, "draft_seconds": 0.002, "acceptance": 0.8, "network": {"round_trip": 0.002}},
        "slow": {"count": 1, "draft_seconds": 0.05, "acceptance": 0.8, "network": {"round_trip": 0.1}},
    }
    workload = {"closed_loop": {}, "prompt_tokens": 8, "output_tokens": 60}
    verifiers = {"gpu": {"profile": "qwen3-8b-rtx4090"}}

    def fast(name: str) -> float:
        rows = played(fleet(tiers=tiers, workload=workload, verifiers=verifiers), name).rows
        own = [row.tpot for row in rows if row.tier == "fast"]
        return sum(own) / len(own)

    assert fast("barrier:12") > 1.5 * fast("goodspeed:12")


def test_capacity_is_the_last_load_that_is_met() -> None:
    """Steps of 10 ms a session, 100 ms a token promised: ten sessions, or one less."""
    document = fleet(
        duration=10,
        warm_up=0,
        tiers={"phone": {"count": 1, "can_draft": False, "service_class": "chat"}},
        verifiers={"gpu": {"profile": {"fixed": 0.0, "per_token": 0.01}, "noise": 0.0, "profiled": False}},
        workload={"closed_loop": {}, "prompt_tokens": 1, "output_tokens": 60},
        classes={"chat": {"tpot": 0.1}},
        capacity={"vary": "tiers.phone.count", "low": 1, "high": 40},
    )
    (cell,) = cells(document, FILE)
    found = capacity(
        cell, FILE, policy("centralized"), 0, lambda config, own, seed: figures(play(config, own, seed), 0.0)
    )
    assert 8 <= found.capacity <= 10


def test_costs_follow_from_what_was_assumed() -> None:
    """One card for 3 counted seconds at 3600 an hour, so 3 for all tokens."""
    found = told(fleet(costs={"gpu_hour": 3600, "gpu_watts": 100, "gpu_idle_watts": 100, "drafter_watts": 0}))
    assert 2 * 3.0 / found["tokens"] * 1e6 == pytest.approx(found["cost"]["per_million_tokens"])
    assert 2 * 300.0 / found["tokens"] == pytest.approx(found["cost"]["joules_per_token"])


def test_memory_does_not_grow_with_rounds() -> None:
    """Two runs with as many requests, one with six times the rounds: less than 8 bytes more for each."""

    def peak(tokens: int) -> tuple[int, int]:
        tiers = {"near": {"count": 4, "draft_seconds": 0.002, "acceptance": 0.5, "network": {"round_trip": 0.002}}}
        workload = {"poisson": {"rate": 4}, "prompt_tokens": 8, "output_tokens": tokens}
        tracemalloc.start()
        found = played(fleet(tiers=tiers, workload=workload, duration=10), "fixed:2")
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return kept, found.total.rounds

    peak(20)  # what is imported and cached on the way
    (small, few), (large, many) = peak(20), peak(120)
    assert many > 5 * few
    assert large - small < 8 * (many - few)


FAULTS = [
    {"at": 2, "seconds": 2, "crash": "gpu-1"},
    {"at": 6, "seconds": 24, "cut": "far"},
    {"at": 8, "seconds": 3, "slow": "near", "by": 0.2},
    {"at": 31, "seconds": 3, "crash": "gpu"},
]


@pytest.mark.parametrize("name", ["fair-goodput", "fixed:4", "stream", "centralized"])
def test_generations_survive_what_a_configuration_breaks(name: str) -> None:
    """Verifiers crash and come back, a tier is cut off for longer than keepalives wait, another one is slow: every text is
    whole, and what was resumed is counted. One after the other: who is cut off and finds its verifier gone as well has waited
    longer than Patience.open allows when it gets to know."""
    found = told(fleet(duration=36, warm_up=0, faults=FAULTS), name)
    assert found["requests"]["issued"] == found["requests"]["finished"]
    assert found["resumes"] >= 5
    books = found["whole_run"]
    assert books["drafted"] == books["accepted"] + books["refused"] + books["stale"] + books["discarded"]


def test_a_verifier_that_stays_away_loses_its_requests() -> None:
    """Who was never let in gives up after Patience.open seconds, and is counted."""
    faults = [{"at": 2, "seconds": 1000, "crash": "gpu"}]
    workload = {"poisson": {"rate": 5}, "output_tokens": 5, "prompt_tokens": 8}
    found = told(fleet(duration=10, warm_up=0, faults=faults, workload=workload, drain=400), "none")
    assert found["requests"]["lost"] == found["failures"] > 20
    assert found["requests"]["lost"] + found["requests"]["finished"] == found["requests"]["issued"]


def test_a_slow_link_is_felt_while_it_lasts() -> None:
    tiers = {"one": {"count": 1, "network": {"round_trip": 0.01}}}
    faults = [{"at": 2, "seconds": 2, "slow": "one", "by": 0.2}]
    workload = {"closed_loop": {}, "prompt_tokens": 8, "output_tokens": 5}
    rows = played(fleet(tiers=tiers, faults=faults, workload=workload, warm_up=0, duration=6), "none").rows
    slow = [row.ttft for row in rows if 2.1 < row.issued < 3.5]
    others = [row.ttft for row in rows if row.issued < 1.5 or row.issued > 4.5]
    assert min(slow) > 0.4
    assert max(others) < 0.2


def test_tiers_may_ask_for_texts_of_their_own() -> None:
    tiers = {"short": {"count": 2, "prompt_tokens": 4, "output_tokens": 3}, "long": {"count": 1}}
    lengths = {(row.tier, row.prompt_tokens, row.output_tokens) for row in played(fleet(tiers=tiers), "none").rows}
    assert {("short", 4, 3)} == {one for one in lengths if one[0] == "short"}
    assert len(lengths) > 2


def test_confident_drafters_stop_early_and_waste_less() -> None:
    """Where confidence tells right from wrong, fewer drafted tokens are refused, for no fewer tokens."""

    def wasted(**more: float) -> tuple[float, float]:
        tiers = {"slow": {"count": 3, "draft_seconds": 0.02, "acceptance": 0.6, **more}}
        found = told(fleet(tiers=tiers, duration=30, workload={"closed_loop": {}, "output_tokens": 200}), "fixed:8")
        books = found["whole_run"]
        return books["refused"] / books["drafted"], found["tokens_per_s"]

    (blind, slow), (sure, fast) = wasted(), wasted(confidence=2.0)
    assert sure < 0.9 * blind
    assert fast > slow


def test_recorded_acceptance_is_what_comes_out(tmp_path: Path) -> None:
    """Three right and one wrong, over and over: every fixed draft of four has three accepted tokens."""
    (tmp_path / "texts.txt").write_text("1110" * 50)
    tiers = {"near": {"count": 2, "acceptance_trace": "texts.txt", "draft_seconds": 0.002}}
    workload = {"closed_loop": {}, "prompt_tokens": 8, "output_tokens": 200}
    config = checked(fleet(tiers=tiers, workload=workload), tmp_path / "fleet.yaml")
    found = figures(play(config, policy("fixed:4"), 0, folder=tmp_path), 0.0)
    assert 0.75 == pytest.approx(found["acceptance_rate"], abs=0.03)
    assert found["accepted_per_position"][2] > 0.95
    assert found["accepted_per_position"][3] < 0.02


# --- the command -------------------------------------------------------------------------------------------------------


def simulate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["simulate", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(json.dumps(fleet(duration=2, warm_up=0)))
    return file


def test_the_command_compares_policies_and_seeds(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = simulate(capsys, str(small), "--policy", "fixed:2", "--policy", "sled", "--seeds", "2", "--json")
    assert code == 0
    found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert [("fixed:2", 0), ("fixed:2", 1), ("sled", 0), ("sled", 1)] == [(one["policy"], one["seed"]) for one in found]
    promised = {
        *("policy", "seed", "clients", "duration_s", "rounds", "tokens", "tokens_per_s", "geomean_tokens_per_s"),
        *(
            "min_tokens_per_s",
            "jain",
            "ttft_s",
            "tpot_s",
            "e2e_s",
            "slo",
            "goodput_requests_per_s",
            "goodput_tokens_per_s",
        ),
        *(
            "acceptance_rate",
            "mean_accepted_length",
            "accepted_per_position",
            "wasted_draft_tokens",
            "wasted_drafting_s",
        ),
        *("verifier", "bytes_up", "bytes_down", "failures", "resumes", "wall_s"),
    }
    assert promised <= set(found[0])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_hold_every_request_and_round(
    small: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, printed, _ = simulate(
        capsys, str(small), "--policy", "fixed:2", "--policy", "none", "--out", str(out), "--format", kind, "--json"
    )
    assert code == 0
    found = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    requests, rounds = (rows_of(out / f"{name}.{kind}") for name in ("requests", "rounds"))
    for one in found:
        own = [row for row in requests if row["policy"] == one["policy"]]
        assert len(own) == one["requests"]["issued"]
        verdicts = [row for row in rounds if row["policy"] == one["policy"]]
        assert len(verdicts) == one["whole_run"]["verdicts"]
        assert sum(int(row["tokens"]) for row in verdicts) == sum(int(row["tokens"]) for row in own)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["configuration"]["tiers"]["far"]["network"]["up"] == 0.05
    trace = json.loads((out / "trace.json").read_text())["traceEvents"]
    steps = [event for event in trace if event.get("ph") == "X"]
    assert steps
    assert all(event["dur"] > 0 for event in steps)


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    parquet = pytest.importorskip("pyarrow.parquet")
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


def test_plots_are_drawn(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "plots"
    assert simulate(capsys, str(small), "--plot", str(out))[0] == 0
    assert {"timeline-fair-goodput", "latencies"} == {path.stem for path in out.iterdir()}
    assert {".png", ".svg"} == {path.suffix for path in out.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "fair-godput"], "--policy is 'fair-godput', must be one of fair-goodput"),
        (["--policy", "fair-godput"], "did you mean fair-goodput?"),
        (["--policy", "fixed:0"], "write fixed:K with K from 1 to 32"),
        (["--seeds", "0"], "seeds"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    small: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = simulate(capsys, str(small), *arguments)
    assert (2, "") == (code, out)
    assert said in err
    assert err.count("\n") == 1


def test_the_tutorial_that_ships_is_read() -> None:
    path = find("tutorial")
    assert checked(read(path), path).drafters == 14
