"""Does the simulator say what the live fleet does? One workload on both, with what was measured of this machine.

    python benchmarks/congruence.py [--rounds 5] [--requests 32]

A verifier and a drafter with the shipped pair, eight streams of 64 tokens. In each round, in turn: `specfleet profile`
measures step times, drafting speed and how well the draft model knows when it is right, and `specfleet bench` the fleet under
each policy, warmed up with other prompts of the same kind. Then the simulator plays the same load with that round's profiles
and the chance of a guess to be right that the fleet had, with several seeds. Nothing is fitted to the fleet's speed. The
figures are medians over rounds of simulated over live: the machine is not the same from one to the next.

Verifier, drafter and load share this machine, which the simulator is told (`hosts`): how many processors there are, on how
many threads the engines compute, and what a message costs a daemon. That is the drafter's processor time under target-only
decoding, where all it does is to take verdicts and pass them on.
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
from simulator.play import Played, play
from specfleet.bench.prompts import read_prompts
from specfleet.bench.scrape import VERIFIER, Interval, scrape
from specfleet.cli.processes import DaemonProcess
from specfleet.text import Tokenizer

ANY = "127.0.0.1:0"
POLICIES = ("none", "fixed:4", "stream", "fair-goodput")
STREAMS, TOKENS = 8, 64
WARM_TOKENS = 16
HEARD = 6
"""Texts that the verifier writes for the drafter's profile."""
SEEDS = range(5)
PROCESSORS = os.cpu_count() or 1
VERIFIER_THREADS, DRAFTER_THREADS = max(1, PROCESSORS // 2), 1
"""The daemons' own defaults, and those of `specfleet profile`."""
ROUND_TRIP = 0.0001
"""Seconds: loopback; what both sides do for a message comes on top."""
LONGEST = 600
"""Seconds in which all requests are certainly issued."""


@dataclass(frozen=True, slots=True)
class Live:
    """What a fleet did."""

    figures: dict[str, Any]
    chance: float
    """Of a guess to be right, given that those before it were; 0 where none was made."""
    message_seconds: float
    """Of the drafter's processor time, for each verdict that it took and passed on."""


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
        return float(self.simulated["acceptance_rate"] - (self.live["acceptance_rate"] or 0.0))


def _at(found: Any, path: Sequence[str]) -> Any:
    for part in path:
        found = found[part]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring each profile")
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
    texts = read_prompts(prompts)
    asked, others = texts[:requests], texts[requests : 2 * requests]
    target, draft = str(MODELS / "tiny-target"), str(MODELS / "tiny-draft")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps, drafts = folder / "steps.json", folder / "drafts.json"
        load, warm = _load(folder / "asked.jsonl", asked, TOKENS), _load(folder / "others.jsonl", others, WARM_TOKENS)
        heard = _written(folder / "heard.jsonl", others[:HEARD])
        run("profile", "--model", target, "--out", str(steps), "--seconds", str(seconds))
        live: dict[str, Live] = {}
        for policy_name in POLICIES:
            with fleet(policy_name) as (verifier, drafter):
                run("bench", "--server", drafter.address, *warm)
                live[policy_name] = _live(verifier, drafter, load)
                if not drafts.exists():
                    against = ("--drafter", "--verifier", verifier.address, "--prompts", heard)
                    run("profile", "--model", draft, *against, "--out", str(drafts), "--seconds", str(seconds / 2.0))
        profiles = json.loads(steps.read_text()), json.loads(drafts.read_text())
    tokenizer = Tokenizer.from_folder(target)
    prompt_tokens = round(statistics.fmean(len(tokenizer.encode(text)) for text in asked))
    message = live["none"].message_seconds
    return {
        policy_name: Sides(
            own.figures, simulated(policy_name, *profiles, own.chance, message, requests, prompt_tokens), message
        )
        for policy_name, own in live.items()
    }


def _live(verifier: DaemonProcess, drafter: DaemonProcess, load: Sequence[str]) -> Live:
    before, used = scrape(verifier.said("metrics")), cpu_seconds(drafter.process.pid)
    found = json.loads(run("bench", "--server", drafter.address, *load).splitlines()[-1])
    used = cpu_seconds(drafter.process.pid) - used
    meanwhile = Interval(before, scrape(verifier.said("metrics")))
    right, wrong = (meanwhile.total(f"{VERIFIER}{kind}_tokens_total") or 0.0 for kind in ("accepted", "recovered"))
    return Live(found, right / (right + wrong) if right else 0.0, used / (2 * found["tokens"]))


def cpu_seconds(process: int) -> float:
    """That a process has used so far, in all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def fleet(name: str) -> Iterator[tuple[DaemonProcess, DaemonProcess]]:
    """The shipped pair under a policy: verifier and drafter."""
    with ExitStack() as stack:

        def daemon(*words: str) -> DaemonProcess:
            process = stack.enter_context(DaemonProcess(*words, "--listen", ANY, "--http", "", "--metrics", ANY))
            process.wait_ready(120)
            return process

        verifier = daemon("verifier", "--model", str(MODELS / "tiny-target"), "--speculation", name)
        yield verifier, daemon("drafter", "--model", str(MODELS / "tiny-draft"), "--verifier", verifier.address)


def _load(path: Path, prompts: Sequence[str], tokens: int) -> tuple[str, ...]:
    """Of each of the prompts once, through a file."""
    load = ("--concurrency", str(STREAMS), "--requests", str(len(prompts)), "--max-tokens", str(tokens), "--ignore-eos")
    return (*load, "--prompts", _written(path, prompts), "--json")


def _written(path: Path, prompts: Sequence[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    return str(path)


def run(*words: str) -> str:
    """What a command of ours printed. Raises CalledProcessError."""
    command = [sys.executable, "-m", "specfleet.cli.main", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def simulated(
    name: str,
    steps: dict[str, Any],
    drafts: dict[str, Any],
    chance: float,
    message: float,
    requests: int,
    prompt_tokens: int,
) -> dict[str, Any]:
    """The same load with these profiles, guesses that are right with that chance, and messages that cost so many seconds;
    means over seeds."""
    document = {
        "duration": LONGEST,
        "hosts": {"here": {"processors": PROCESSORS, "message_seconds": message}},
        "tiers": {
            "drafter": {
                "count": 1,
                "streams": STREAMS,
                "together": dict(zip(drafts["batches"], drafts["seconds_per_token"], strict=True)),
                "acceptance": chance,
                "confidence": drafts["confidence"],
                "network": {"round_trip": ROUND_TRIP},
                "host": "here",
                "threads": DRAFTER_THREADS,
            }
        },
        "verifiers": {
            "verifier": {
                "profile": {key: one for key, one in steps.items() if key != "source"},
                "host": "here",
                "threads": VERIFIER_THREADS,
            }
        },
        "workload": {"closed_loop": {"requests": requests}, "prompt_tokens": prompt_tokens, "output_tokens": TOKENS},
    }
    checked_document = checked(document, Path("congruence.yaml"))
    played = [play(checked_document, policy(name), seed) for seed in SEEDS]
    found = [figures(one, 0.0) for one in played]
    return {
        "tokens_per_s": statistics.fmean(map(_speed, played)),
        "acceptance_rate": statistics.fmean(one["acceptance_rate"] or 0.0 for one in found),
        **{key: {"p50": statistics.fmean(one[key]["p50"] for one in found)} for key in ("tpot_s", "ttft_s")},
    }


def _speed(played: Played) -> float:
    """As `specfleet bench` counts: from the first request's beginning to the last one's end."""
    return played.total.tokens / (
        max(row.issued + row.e2e for row in played.rows) - min(row.issued for row in played.rows)
    )


if __name__ == "__main__":
    sys.exit(main())
