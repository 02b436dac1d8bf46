"""Does the simulator say what the live fleet does? One workload on both, with what was measured of this machine.

    python benchmarks/congruence.py [--rounds 5] [--requests 32]

A verifier and a drafter with the shipped pair, eight streams of 64 tokens. In each round, in turn: `specfleet profile`
measures step times and drafting speed, `specfleet bench` the fleet, under target-only decoding and with four drafted tokens;
then the simulator plays the same with that round's profiles and the acceptance that the fleet had. Nothing is fitted to the
fleet's speed. The figures are medians over rounds of simulated over live: the machine is not the same from one to the next.

Verifier, drafter and load share this machine, which the simulator is told (`hosts`): how many processors there are, that both
engines use all of them, and what a message costs a daemon. That is the drafter's processor time under target-only decoding,
where all it does is to take verdicts and pass them on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import MODELS, ROOT, Report, progress, table
from simulator.baselines import policy
from simulator.document import checked
from simulator.figures import figures
from simulator.play import play
from specfleet.cli.processes import DaemonProcess

ANY = "127.0.0.1:0"
POLICIES = ("none", "fixed:4")
STREAMS, TOKENS = 8, 64
ROUND_TRIP = 0.0001
"""Seconds: loopback; what both sides do for a message comes on top."""
LONGEST = 600
"""Seconds in which all requests are certainly issued."""
PROMPT_TOKENS = {"uniform": [16, 160]}
"""About what the prompts have in the shipped pair's tokens."""


@dataclass(frozen=True, slots=True)
class Sides:
    """Of one policy in one round."""

    live: dict[str, Any]
    simulated: dict[str, Any]
    message_seconds: float
    """What a message cost a daemon."""

    def ratio(self, *path: str) -> float:
        """Simulated over live."""
        return float(_at(self.simulated, path) / _at(self.live, path))

    @property
    def acceptance(self) -> float:
        """Simulated less live."""
        return float(self.simulated["acceptance_rate"] - self.live["acceptance_rate"])


def _at(found: Any, path: Sequence[str]) -> Any:
    for part in path:
        found = found[part]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0, help="of measuring each profile")
    parser.add_argument("--prompts", type=Path, default=ROOT.parent / "shared" / "prompts" / "spec_bench.jsonl")
    arguments = parser.parse_args()
    rounds = []
    for number in range(arguments.rounds):
        progress(f"round {number + 1} of {arguments.rounds}")
        rounds.append(measure(arguments.requests, arguments.seconds, arguments.prompts))
    progress("")
    return _report(rounds)


def _report(rounds: Sequence[dict[str, Sides]]) -> int:
    report = Report("congruence")
    rows = [["", "live tokens/s", "simulated", "ratio", "TPOT ratio", "live acceptance", "simulated"]]
    for name in POLICIES:
        own = [one[name] for one in rounds]
        speed = statistics.median(one.ratio("tokens_per_s") for one in own)
        tpot = statistics.median(one.ratio("tpot_s", "p50") for one in own)
        report.figures[name] = {
            "tokens_per_s": [(one.live["tokens_per_s"], one.simulated["tokens_per_s"]) for one in own],
            "tpot_p50_s": [(one.live["tpot_s"]["p50"], one.simulated["tpot_s"]["p50"]) for one in own],
            "message_s": [one.message_seconds for one in own],
            "ttft_p50_s": [(one.live["ttft_s"]["p50"], one.simulated["ttft_s"]["p50"]) for one in own],
        }
        accepted = [_median(one.live["acceptance_rate"] for one in own), ""]
        if name != "none":
            accepted[1] = _median(one.simulated["acceptance_rate"] for one in own)
        live, simulated = (
            _median(side["tokens_per_s"] for side in sides)
            for sides in ([one.live for one in own], [one.simulated for one in own])
        )
        rows.append([name, live, simulated, f"{speed:.3f}", f"{tpot:.3f}", *accepted])
        report.bar(f"{name}: tokens/s, simulated off by", abs(speed - 1.0), 0.15, at_most=True)
        report.bar(f"{name}: TPOT p50, simulated off by", abs(tpot - 1.0), 0.15, at_most=True)
        if name != "none":
            off = statistics.median(abs(one.acceptance) for one in own)
            report.bar(f"{name}: acceptance, simulated off by", off, 0.03, at_most=True)
    table(rows)
    return report.finish()


def _median(values: Iterator[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.3g}" if known else ""


def measure(requests: int, seconds: float, prompts: Path) -> dict[str, Sides]:
    """One round: profiles of this machine as it is now, each policy live, and simulated."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        steps, drafts = Path(folder) / "steps.json", Path(folder) / "drafts.json"
        target, draft = str(MODELS / "tiny-target"), str(MODELS / "tiny-draft")
        run("profile", "--model", target, "--out", str(steps), "--seconds", str(seconds))
        run("profile", "--model", draft, "--drafter", "--out", str(drafts), "--seconds", str(seconds / 2.0))
        for name in POLICIES:
            with fleet(name) as drafter:
                run(*_load(drafter.address, STREAMS, prompts))  # warm
                before = cpu_seconds(drafter.process.pid)
                live = json.loads(run(*_load(drafter.address, requests, prompts)).splitlines()[-1])
                if name == "none":
                    # A verdict comes and is passed on.
                    message = (cpu_seconds(drafter.process.pid) - before) / (2 * live["tokens"])
            profiles = json.loads(steps.read_text()), json.loads(drafts.read_text())
            found[name] = Sides(live, simulated(name, *profiles, live, requests, message), message)
    return found


def cpu_seconds(process: int) -> float:
    """That a process has used so far, in all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def fleet(name: str) -> Iterator[DaemonProcess]:
    """The shipped pair under a policy; its drafter."""
    with ExitStack() as stack:

        def daemon(*words: str) -> DaemonProcess:
            process = stack.enter_context(DaemonProcess(*words, "--listen", ANY, "--http", "", "--metrics", ANY))
            process.wait_ready(120)
            return process

        verifier = daemon("verifier", "--model", str(MODELS / "tiny-target"), "--speculation", name)
        yield daemon("drafter", "--model", str(MODELS / "tiny-draft"), "--verifier", verifier.address)


def _load(server: str, requests: int, prompts: Path) -> tuple[str, ...]:
    load = ("--concurrency", str(STREAMS), "--requests", str(requests), "--max-tokens", str(TOKENS), "--ignore-eos")
    return ("bench", "--server", server, *load, "--prompts", str(prompts), "--json")


def run(*words: str) -> str:
    """What a command of ours printed. Raises CalledProcessError."""
    command = [sys.executable, "-m", "specfleet.cli.main", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def simulated(
    name: str, steps: dict[str, Any], drafts: dict[str, Any], live: dict[str, Any], requests: int, message: float
) -> dict[str, Any]:
    """The same workload, request for request, with these profiles, messages that cost so many seconds, and the live fleet's
    acceptance."""
    rate = live["acceptance_rate"]
    here = {"host": "here", "threads": os.cpu_count()}
    document = {
        "duration": LONGEST,
        "hosts": {"here": {"processors": os.cpu_count(), "message_seconds": message}},
        "tiers": {
            "drafter": {
                "count": 1,
                "streams": STREAMS,
                "together": dict(zip(drafts["batches"], drafts["seconds_per_token"], strict=True)),
                "acceptance": 0.0 if rate is None else each(rate, 4),
                "network": {"round_trip": ROUND_TRIP},
                **here,
            }
        },
        "verifiers": {"verifier": {"profile": {key: one for key, one in steps.items() if key != "source"}, **here}},
        "workload": {"closed_loop": {"requests": requests}, "prompt_tokens": PROMPT_TOKENS, "output_tokens": TOKENS},
    }
    played = play(checked(document, Path("congruence.yaml")), policy(name), 0)
    # As `specfleet bench` counts: from the first request's beginning to the last one's end.
    seconds = max(row.issued + row.e2e for row in played.rows) - min(row.issued for row in played.rows)
    return figures(played, 0.0) | {"tokens_per_s": played.total.tokens / seconds}


def each(rate: float, length: int) -> float:
    """Chance of each token of which a share of `rate` is accepted in drafts of `length`: sum_j a^j = rate * length."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (middle, high) if sum(middle**j for j in range(1, length + 1)) < rate * length else (low, middle)
    return low


if __name__ == "__main__":
    sys.exit(main())
