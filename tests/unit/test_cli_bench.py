"""`specfleet bench` and `specfleet status` as their users run them, against a server that counts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry

from specfleet.observability.drafter import DrafterMetrics
from specfleet.observability.registry import MetricsServer
from specfleet.observability.verifier import VerifierMetrics
from support.generation import Counter, serving, serving_process

PROGRAM = [sys.executable, "-m", "specfleet.cli.main"]
ROOT = Path(__file__).resolve().parents[2]
Result = subprocess.CompletedProcess[str]


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SPECFLEET_")}
    return {**clean, "PYTHONPATH": str(ROOT)}


def specfleet(*arguments: str) -> Result:
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, timeout=60, env=environment(), check=False
    )


def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def last_object(found: Result) -> Any:
    return json.loads(found.stdout.splitlines()[-1])


def assert_fails(found: Result, code: int, message: str) -> None:
    """One line on stderr, the documented exit code, no traceback."""
    assert found.stderr.startswith("specfleet: error: "), found.stderr
    assert message in found.stderr
    assert (1, code) == (found.stderr.count("\n"), found.returncode), found.stderr


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving_process(delay=0.001) as address:
        yield address


@pytest.fixture(scope="module")
def metrics() -> Iterator[dict[str, str]]:
    """Endpoints of a verifier, a drafter, and of somebody else."""
    registries = {name: CollectorRegistry() for name in ("verifier", "drafter", "other")}
    VerifierMetrics(registries["verifier"])
    DrafterMetrics(registries["drafter"])
    prometheus_client.Counter("apples", "Apples.", registry=registries["other"])
    servers = {name: MetricsServer(registry, "127.0.0.1:0") for name, registry in registries.items()}
    yield {name: one.address for name, one in servers.items()}
    for one in servers.values():
        one.close()


# --- bench ----------------------------------------------------------------------------------------------------------


def test_bench(server: str) -> None:
    """A table with both definitions, then one object on the last line with --json and none without."""
    arguments = ("bench", "--server", server, "--requests", "6", "--concurrency", "2", "--max-tokens", "4")
    plain, found = specfleet(*arguments), specfleet(*arguments, "--json")
    figures = last_object(found)

    assert (0, 0, "") == (plain.returncode, found.returncode, found.stderr)
    for text in (plain.stdout, found.stdout):
        assert "6 of 6 requests in 2 streams, 24 tokens" in text
        assert "ttft: seconds from sending" in text and "(total - ttft) / (n - 1)" in text
    assert "{" not in plain.stdout
    assert ("fixed:4", 0, 2, 24, 6, 0) == tuple(
        figures[name] for name in ("policy", "seed", "clients", "tokens", "rounds", "failures")
    )
    assert (0.75, 4.0) == (figures["acceptance_rate"], figures["mean_accepted_length"])
    assert figures["verifier"]["busy"] is figures["bytes_up"] is figures["wasted_draft_tokens"]["stale"] is None
    assert figures["wall_s"] > figures["duration_s"] > 0


def test_bench_sweeps(server: str, tmp_path: Path) -> None:
    """A rate each time it is said: a run each, a table of all in the end, an object a line, and plots."""
    rates = [word for rate in ("50", "100", "200") for word in ("--rate", rate)]
    arguments = ("--requests", "6", "--max-tokens", "4", "--plot", str(tmp_path / "plots"), "--json")
    found = specfleet("bench", "--server", server, *rates, *arguments)
    runs = [json.loads(line) for line in found.stdout.splitlines()[-3:]]

    assert (0, "") == (found.returncode, found.stderr)
    assert [50.0, 100.0, 200.0] == [run["load"] for run in runs]
    assert {24} == {run["tokens"] for run in runs}
    assert 3 == found.stdout.count("6 of 6 requests in 6 streams") and "requests/s kept" in found.stdout
    assert {"latencies.png", "latencies.svg", "sweep.png", "sweep.svg"} == {
        path.name for path in (tmp_path / "plots").iterdir() if path.stat().st_size > 1000
    }


@pytest.mark.asyncio
async def test_bench_plays_a_trace(tmp_path: Path) -> None:
    """Requests come when the trace says, times the speed, as long as it says up to the limits."""
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.0,8,3\n2023-11-16 18:15:50.0,400,9\n"
        "2023-11-16 18:15:56.0,8,2\n"
    )
    counter = Counter()
    limits = ("--speed", "10", "--max-prompt-tokens", "40", "--max-tokens", "5", "--requests", "3")
    async with serving(counter) as address:
        found = await asyncio.to_thread(
            specfleet, "bench", "--server", address, "--trace", str(path), *limits, "--json"
        )
    figures = last_object(found)

    assert [(6, 3), (30, 5), (6, 2)] == [
        (len((one.prompt or "").split()), one.sampling.max_tokens) for one in counter.requests
    ]
    assert (3, 10) == (figures["clients"], figures["tokens"])
    assert figures["duration_s"] >= 1.0


@pytest.mark.asyncio
async def test_bench_asks_as_it_is_told(tmp_path: Path) -> None:
    """Prompts of the file over and over, classes in turn, seeds one after another; at a rate each request is a stream."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}\n{"id": 7, "prompt": "two"}\n')
    counter = Counter()
    arguments = ("--slo", "fast", "--slo", "slow", "--slo", "", "--rate", "200", "--seed", "3", "--temperature", "0.5")
    async with serving(counter) as address:
        found = await asyncio.to_thread(
            specfleet, "bench", "--server", address, "--prompts", str(path), "--requests", "5", *arguments, "--json"
        )
    asked = sorted((one.sampling.seed, one.prompt, one.service_class) for one in counter.requests)
    figures = last_object(found)

    assert [(3, "one", "fast"), (4, "two", "slow"), (5, "one", ""), (6, "two", "fast"), (7, "one", "slow")] == asked
    assert {(64, 0.5, False)} == {
        (one.sampling.max_tokens, one.sampling.temperature, one.sampling.ignore_eos) for one in counter.requests
    }
    assert (3, 5) == (figures["seed"], figures["clients"])
    assert {"": 1, "fast": 2, "slow": 2} == {name: kept["requests"] for name, kept in figures["slo"].items()}


@pytest.mark.parametrize(
    ("arguments", "streams"),
    [((), 8), (("--rate", "inf"), 9), (("--rate", "inf", "--concurrency", "3"), 3), (("--concurrency", "20"), 9)],
)
def test_bench_streams(server: str, arguments: tuple[str, ...], streams: int) -> None:
    """Eight lanes unless said; at an infinite rate all at once, or as many as said."""
    found = specfleet("bench", "--server", server, "--requests", "9", "--max-tokens", "2", *arguments, "--json")

    assert streams == last_object(found)["clients"]


def test_bench_takes_several_servers(server: str) -> None:
    """Lanes are spread over servers, so one that refuses fails its own and nobody else's."""
    with serving_process("0:overloaded") as busy:
        arguments = ("--requests", "4", "--concurrency", "2", "--json")
        found = specfleet("bench", "--server", server, "--server", busy, *arguments)

    assert (0, 1) == (found.returncode, last_object(found)["failures"])
    assert "3 of 4 requests" in found.stdout
    assert "failures      1, the first: everybody is busy" in found.stdout


def test_bench_where_nothing_succeeds_is_the_first_error() -> None:
    """Refused: the error's own exit code and message."""
    with serving_process("0:overloaded") as busy:
        found = specfleet("bench", "--server", busy, "--requests", "1", "--json")

    assert_fails(found, 4, "everybody is busy")
    assert found.stdout == ""


def test_bench_that_fails_midway_shows_what_came() -> None:
    """Out of time with two tokens: exit code 5, and what there was is still shown."""
    with serving_process("2:hang") as slow:
        found = specfleet("bench", "--server", slow, "--requests", "1", "--timeout", "1", "--json")

    assert_fails(found, 5, "out of time after 1 s and 2 tokens")
    assert (2, 1) == (last_object(found)["tokens"], last_object(found)["failures"])


@pytest.mark.asyncio
async def test_bench_interrupted_shows_what_there_is() -> None:
    """Ctrl-C: no traceback, exit code 130, figures of what had been done."""
    counter = Counter(faults={9: "hang"}, delay=0.001)
    async with serving(counter) as address:
        arguments = ("--requests", "50", "--concurrency", "1", "--max-tokens", "10", "--json")
        process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            *("bench", "--server", address, *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
        while counter.faults and process.returncode is None:  # noqa: ASYNC110 (the server has no event for it)
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)  # the last token before it hangs is on its way
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), 20)
    figures = json.loads(out.splitlines()[-1])

    assert (130, b"") == (process.returncode, err)
    assert (9, 0, None, {}) == (figures["tokens"], figures["failures"], figures["ttft_s"]["p50"], figures["slo"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rate", "0"), "--rate is 0, must be above 0 requests per second, or inf"),
        (("--rate", "-1"), "--rate is -1, must be above 0"),
        (("--speed", "2"), "--speed and --max-prompt-tokens are about a trace; give --trace, or leave them out"),
        (("--max-prompt-tokens", "64"), "--speed and --max-prompt-tokens are about a trace"),
        (("--rate", "nan"), "--rate is nan, must be above 0"),
        (("--rate", "fast"), "'fast' is not a valid float"),
        (("--concurrency", "0"), "0 is not in the range x>=1"),
        (("--rate", "1", "--rate", "2", "--concurrency", "1", "--concurrency", "2"), "repeat one of them only"),
        (("--rate", "1", "--rate", "2", "--trace-out", "t.json"), "--trace-out is of one run; leave the sweep out"),
        (("--trace", "/nowhere.csv"), "cannot read the trace /nowhere.csv: No such file"),
        (("--trace", "/nowhere.csv", "--rate", "1"), "--trace says when requests come, and so does --rate"),
        (("--speed", "0"), "--speed is 0, must be a number above 0"),
        (("--plot", "/dev/null/x"), "cannot make the folder /dev/null/x"),
        (("--breakdown",), "--breakdown needs the metrics of a verifier; give its --metrics HOST:PORT, too"),
        (("--trace-out", "t.json"), "--trace-out needs the --metrics of at least one daemon"),
        (("--requests", "0"), "0 is not in the range x>=1"),
        (("--max-tokens", "0"), "max_tokens: is 0, must be at least 1"),
        (("--temperature", "-1"), "temperature: is -1.0, must be between 0 and 100"),
        (("--seed", "-1"), "-1 is not in the range x>=0"),
        (("--seed", str(2**64)), "must be an unsigned 64-bit integer"),
        (("--timeout", "0"), "timeout: is 0.0, must be a finite number of seconds above 0"),
        (("--prompts", "/nowhere.jsonl"), "cannot read /nowhere.jsonl: No such file"),
        (("--server", "edge-7"), "address 'edge-7' is not HOST:PORT"),
        (("--metrics", "7601"), "--metrics: address '7601' is not HOST:PORT"),
        (("--concurency", "2"), "No such option '--concurency'. (Did you mean one of: '--concurrency'"),
    ],
)
def test_bench_bad_usage(server: str, arguments: tuple[str, ...], message: str) -> None:
    """What cannot be right is one line that names the value and the way out, exit code 2, before any load."""
    assert_fails(specfleet("bench", "--server", server, *arguments), 2, message)


def test_bench_bad_line_of_prompts(server: str, tmp_path: Path) -> None:
    """The line is named."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine"}\n\n{"prompt": \n')

    assert_fails(specfleet("bench", "--server", server, "--prompts", str(path)), 2, f"line 3 of {path} is not JSON")


def test_bench_without_server_or_metrics(server: str, metrics: dict[str, str]) -> None:
    """Nobody there is exit code 3 at once, also where one of several is missing; somebody else's metrics are code 2."""
    nobody = closed_port()

    assert_fails(specfleet("bench", "--server", nobody), 3, f"cannot reach {nobody}")
    assert_fails(specfleet("bench", "--server", server, "--server", nobody), 3, f"cannot reach {nobody}")
    assert_fails(specfleet("bench", "--server", server, "--metrics", nobody), 3, f"cannot reach metrics at {nobody}")
    assert_fails(
        specfleet("bench", "--server", server, "--metrics", metrics["other"]), 2, "but not those of a verifier"
    )


# --- status ---------------------------------------------------------------------------------------------------------


def test_status_once(metrics: dict[str, str]) -> None:
    """A table with a row for each endpoint, and one for who does not answer; exit code 0 while somebody does."""
    nobody = closed_port()
    addresses = [part for one in (*metrics.values(), nobody) for part in ("--metrics", one)]
    table = specfleet("status", *addresses, "--once", "--interval", "0.2")
    found = last_object(specfleet("status", *addresses, "--once", "--interval", "0.2", "--json"))

    assert (0, "") == (table.returncode, table.stderr)
    for word in (metrics["verifier"], metrics["drafter"], f"unreachable: cannot reach metrics at {nobody}", "steps/s"):
        assert word in table.stdout
    assert [metrics["verifier"]] == [row["address"] for row in found["verifiers"]]
    assert [metrics["drafter"]] == [row["address"] for row in found["drafters"]]
    assert [metrics["other"], nobody] == [row["address"] for row in found["unreachable"]]
    assert (0.0, None, 0) == (
        found["verifiers"][0]["steps_per_s"],
        found["verifiers"][0]["acceptance_rate"],
        found["drafters"][0]["sessions"],
    )


@pytest.mark.parametrize("once", [("--once",), ()])
def test_status_of_nobody_is_exit_code_3(once: tuple[str, ...]) -> None:
    """No endpoint answers: their rows, one line, exit code 3; nobody waits for an interval."""
    address = closed_port()
    found = specfleet("status", "--metrics", address, "--interval", "50", *once)

    assert_fails(found, 3, f"no daemon answers with its metrics: cannot reach metrics at {address}")
    assert f"unreachable: cannot reach metrics at {address}" in found.stdout


def test_status_goes_on_until_ctrl_c(metrics: dict[str, str]) -> None:
    """Without --once a table (or an object a line) each interval; Ctrl-C is exit code 130 without a word."""
    command = [*PROGRAM, "status", "--metrics", metrics["verifier"], "--interval", "0.1", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True, bufsize=1
    )
    assert process.stdout is not None
    rows = [json.loads(process.stdout.readline())["verifiers"][0] for _ in range(4)]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)

    assert (130, "") == (process.returncode, err.strip())
    assert [None, 0.0, 0.0, 0.0] == [row["steps_per_s"] for row in rows]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--interval", "0"), "--interval is 0, must be above 0"),
        (("--interval", "nan"), "--interval is nan, must be above 0"),
        (("--interval", "inf"), "--interval is inf, must be above 0 and at most 3600 seconds"),
        (("--metrics", "gpu-1"), "--metrics: address 'gpu-1' is not HOST:PORT"),
    ],
)
def test_status_bad_usage(arguments: tuple[str, ...], message: str) -> None:
    """One line, exit code 2."""
    assert_fails(specfleet("status", *arguments), 2, message)


@pytest.mark.parametrize(("name", "module"), [("bench", "numpy"), ("status", "prometheus_client")])
def test_a_missing_extra_is_one_sentence(name: str, module: str) -> None:
    """A base install says what to add."""
    program = (
        f"import sys; sys.modules['{module}'] = None\nfrom specfleet.cli.main import main; sys.exit(main(['{name}']))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=False
    )

    assert_fails(found, 2, f"{name} needs {module}: pip install 'specfleet[bench]'")
