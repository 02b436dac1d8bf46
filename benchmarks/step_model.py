"""How well the scheduler foretells its steps: a live verifier under mixed load, without a profile and with one.

    python benchmarks/step_model.py [--requests 96]

One verifier with the shipped target and two drafters; `specfleet bench` keeps 1 to 12 streams of short and long prompts
going, with lengths and modes drawn at random. The figure is the mean of |predicted / actual - 1| over all steps after the
first 200, from the verifier's own counters. Prompts are of all lengths, so prefill chunks, verification and decoding share
steps.

The bar is for a verifier that has its machine for itself, as nearly as two cores allow: it is pinned to one of them, all else
to the other, and its drafters look up n-grams. On shared cores steps of one and the same shape lie 14 to 15 % from their own
median, and so does what is predicted. The row with a draft model is for comparison.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import MODELS, ROOT, Report, pinned, progress, table
from specfleet.bench.scrape import scrape
from specfleet.cli.processes import DaemonProcess

ANY = "127.0.0.1:0"
FIRST = 200
BAR = 0.10
LOADS = (1, 4, 12)
"""Streams at a time."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--policy", default="random")
    parser.add_argument("--prompts", type=Path, default=ROOT.parent / "shared" / "prompts" / "spec_bench.jsonl")
    arguments = parser.parse_args()
    report = Report("step_model")
    rows = [["", "steps", "mean |predicted / actual - 1|"]]
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile.json"
        progress("measuring a profile")
        with pinned(0):
            _run("profile", "--model", str(MODELS / "tiny-target"), "--out", str(profile), "--seconds", "20")
        profiled = ("--profile", str(profile))
        for name, options, drafter in (
            ("no profile", (), "ngram"),
            ("profile", profiled, "ngram"),
            ("profile, beside a draft model", profiled, str(MODELS / "tiny-draft")),
        ):
            steps, error = _measure(arguments, name, options, drafter)
            report.figures[name] = {"steps": steps, "mape": error}
            rows.append([name, f"{steps:.0f}", f"{error:.1%}"])
            if drafter == "ngram":
                report.bar(f"{name}: error after {FIRST} steps", error, BAR, at_most=True)
    progress("")
    table(rows)
    return report.finish()


def _measure(arguments: argparse.Namespace, name: str, options: tuple[str, ...], drafter: str) -> tuple[float, float]:
    with ExitStack() as stack:

        def daemon(*words: str) -> DaemonProcess:
            process = stack.enter_context(DaemonProcess(*words, "--listen", ANY, "--http", "", "--metrics", ANY))
            process.wait_ready(120)
            return process

        target = ("verifier", "--model", str(MODELS / "tiny-target"), "--speculation", arguments.policy)
        with pinned(0):
            verifier = daemon(*target, *options)
        with pinned(1):
            drafters = [daemon("drafter", "--model", one, "--verifier", verifier.address) for one in (drafter, "ngram")]
        servers = [word for drafter in drafters for word in ("--server", drafter.address)]
        progress(f"{name}: the first {FIRST} steps")
        while _counts(verifier)[0] < FIRST:
            _bench(arguments, servers, 4, 8)
            time.sleep(0.1)
        steps, error = _counts(verifier)
        for streams in LOADS:
            progress(f"{name}: {streams} streams")
            _bench(arguments, servers, streams, arguments.requests // len(LOADS))
        more_steps, more_error = _counts(verifier)
        return more_steps - steps, (more_error - error) / (more_steps - steps)


def _counts(verifier: DaemonProcess) -> tuple[float, float]:
    """Steps, and the sum of their relative errors."""
    found = scrape(verifier.said("metrics"))
    names = ("specfleet_verifier_step_seconds_count", "specfleet_verifier_step_relative_error_total")
    steps, error = (found.total(name) or 0.0 for name in names)
    return steps, error


def _bench(arguments: argparse.Namespace, servers: list[str], streams: int, requests: int) -> None:
    load = ("--concurrency", str(streams), "--requests", str(requests), "--max-tokens", "48", "--ignore-eos")
    with pinned(1):
        _run("bench", *servers, *load, "--prompts", str(arguments.prompts))


def _run(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "specfleet.cli.main", *words], check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
