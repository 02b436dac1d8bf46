"""Does the simulator say what the live fleet does? One workload on both, with what was measured of this machine.

    python benchmarks/congruence.py [--rounds 5] [--requests 32]

A verifier and a drafter with the shipped pair, eight streams of 64 tokens. In each round, in turn: `specfleet profile`
measures step times and drafting speed, and `specfleet bench` the fleet under each policy, warmed up with other prompts of the
same kind. Then the simulator plays the same load with that round's profiles and, of each text, which guesses are right: that
follows from the models alone, which are asked for it, and so does how well the draft model knows when it is right. Nothing is
fitted to the fleet's figures. They are compared with means over the simulator's seeds, and printed are medians over rounds, as
the machine is not the same from one to the next.

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
from specfleet.cli.processes import DaemonProcess
from specfleet.core.step import PAGE_SIZE, StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine import EngineConfig, TorchEngine
from specfleet.profiling.acceptance import Heard, guessed, told_apart
from specfleet.text import Tokenizer

ANY = "127.0.0.1:0"
POLICIES = ("none", "fixed:4", "stream", "fair-goodput")
STREAMS, TOKENS = 8, 64
WARM_TOKENS = 16
TRACE = "acceptance.txt"
GREEDY = SamplingParams(temperature=0.0)
SEEDS = range(10)
PROCESSORS = os.cpu_count() or 1
VERIFIER_THREADS, DRAFTER_THREADS = max(1, PROCESSORS // 2), 1
"""The daemons' own defaults, and those of `specfleet profile`."""
ROUND_TRIP = 0.0001
"""Seconds: loopback; what both sides do for a message comes on top."""
LONGEST = 600
"""Seconds in which all requests are certainly issued."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What the models say of the prompts, whatever fleet they are in."""

    prompt_tokens: int
    """Mean."""
    right: tuple[str, ...]
    """Of each prompt's text, 1 for every token that the draft model would have guessed, else 0: an acceptance trace."""
    confidence: float | None
    """See `specfleet.profiling.acceptance.told_apart`."""

    @property
    def acceptance(self) -> float:
        return "".join(self.right).count("1") / sum(map(len, self.right))


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
    known = read_prompts(prompts)
    asked, others = known[:requests], known[requests : 2 * requests]
    target, draft = str(MODELS / "tiny-target"), str(MODELS / "tiny-draft")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps, drafts = folder / "steps.json", folder / "drafts.json"
        load, warm = _load(folder / "asked.jsonl", asked, TOKENS), _load(folder / "others.jsonl", others, WARM_TOKENS)
        run("profile", "--model", target, "--out", str(steps), "--seconds", str(seconds))
        run("profile", "--model", draft, "--drafter", "--out", str(drafts), "--seconds", str(seconds / 2.0))
        live, message = {}, 0.0
        for policy_name in POLICIES:
            with fleet(policy_name, steps) as drafter:
                run("bench", "--server", drafter.address, *warm)
                used = cpu_seconds(drafter.process.pid)
                own = live[policy_name] = json.loads(run("bench", "--server", drafter.address, *load).splitlines()[-1])
                if policy_name == "none":
                    # A verdict comes and is passed on.
                    message = (cpu_seconds(drafter.process.pid) - used) / (2 * own["tokens"])
        profiles = json.loads(steps.read_text()), json.loads(drafts.read_text())
        texts = asked_of_models(asked)
        (folder / TRACE).write_text("\n".join(texts.right))
        return {
            policy_name: Sides(own, simulated(policy_name, *profiles, texts, message, folder), message)
            for policy_name, own in live.items()
        }


def asked_of_models(prompts: Sequence[str]) -> Texts:
    """The target's texts behind these prompts, and what the draft model would have guessed of them."""
    tokenizer = Tokenizer.from_folder(str(MODELS / "tiny-target"))
    encoded = [tokenizer.encode(text) for text in prompts]
    room = sum(map(len, encoded)) + len(encoded) * (TOKENS + PAGE_SIZE)
    target, draft = (
        TorchEngine(EngineConfig(model=str(MODELS / model), kv_cache_tokens=room, threads=PROCESSORS, quantize=bits))
        for model, bits in (("tiny-target", None), ("tiny-draft", "auto"))
    )
    for number in range(len(encoded)):
        target.open(number, ())
    rows = target.extend_sync([StepItem(number, ids, GREEDY) for number, ids in enumerate(encoded)], TOKENS)
    found = [
        guessed(draft, Heard((*ids, *(one.tokens[-1] for one in row)), len(ids), 0.0, 0.0))
        for ids, row in zip(encoded, rows, strict=True)
    ]
    for engine in (target, draft):
        engine.shutdown()
    right = tuple("".join(str(int(place.right)) for place in text) for text in found)
    prompt_tokens = round(statistics.fmean(map(len, encoded)))
    return Texts(prompt_tokens, right, told_apart([place for text in found for place in text]))


def cpu_seconds(process: int) -> float:
    """That a process has used so far, in all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def fleet(name: str, profile: Path) -> Iterator[DaemonProcess]:
    """The shipped pair under a policy; its drafter. The verifier knows what the simulator is told of its steps: what a token
    of them costs decides where drafts end."""
    with ExitStack() as stack:

        def daemon(*words: str) -> DaemonProcess:
            process = stack.enter_context(DaemonProcess(*words, "--listen", ANY, "--http", "", "--metrics", ANY))
            process.wait_ready(120)
            return process

        target = str(MODELS / "tiny-target")
        verifier = daemon("verifier", "--model", target, "--speculation", name, "--profile", str(profile))
        yield daemon("drafter", "--model", str(MODELS / "tiny-draft"), "--verifier", verifier.address)


def _load(path: Path, prompts: Sequence[str], tokens: int) -> tuple[str, ...]:
    """Of each of the prompts once, through a file."""
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    load = ("--concurrency", str(STREAMS), "--requests", str(len(prompts)), "--max-tokens", str(tokens), "--ignore-eos")
    return (*load, "--prompts", str(path), "--json")


def run(*words: str) -> str:
    """What a command of ours printed. Raises CalledProcessError."""
    command = [sys.executable, "-m", "specfleet.cli.main", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def simulated(
    name: str, steps: dict[str, Any], drafts: dict[str, Any], texts: Texts, message: float, folder: Path
) -> dict[str, Any]:
    """The same load with these profiles and texts, and messages that cost so many seconds; means over seeds. The texts'
    acceptance trace is in `folder`."""
    document = {
        "duration": LONGEST,
        "hosts": {"here": {"processors": PROCESSORS, "message_seconds": message}},
        "tiers": {
            "drafter": {
                "count": 1,
                "streams": STREAMS,
                "together": dict(zip(drafts["batches"], drafts["seconds_per_token"], strict=True)),
                "acceptance": texts.acceptance,
                "acceptance_trace": TRACE,
                "confidence": texts.confidence,
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
        "workload": {
            "closed_loop": {"requests": len(texts.right)},
            "prompt_tokens": texts.prompt_tokens,
            "output_tokens": TOKENS,
        },
    }
    simulation = checked(document, folder / "congruence.yaml")
    played = [play(simulation, policy(name), seed, folder=folder) for seed in SEEDS]
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
