"""All speculation policies side by side on a live fleet: one verifier, four drafters, twelve streams.

    python benchmarks/policies.py [--rounds 5] [--requests 48] [--policy fair-goodput --policy none …]

Two drafters are far away (20 and 60 ms to the verifier and back, through a proxy on this machine), one is a prompt-lookup
drafter, one is near; three streams each. One policy's fleet runs at a time, in turns, `specfleet bench` measures it after
a warm-up of the same kind. The verifier is pinned to one core and all drafters and streams to another; with --shared they
share both, so that drafting takes time from verifying, and a policy that drafts has to earn more than that. The figure is
the geometric mean over streams of tokens per second.

A run of a few seconds varies by a tenth here, so the question is decided by rounds; from the third on only those policies
take part that are within FAR of the best median so far. The bar is on the median over rounds of fair-goodput's figure over
that of the policy with the best median: each round is compared with itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import MODELS, ROOT, Report, pinned, progress, table
from benchmarks.delay import DelayProxy
from specfleet.cli.processes import DaemonProcess

POLICIES = (
    "fair-goodput",
    "goodspeed",
    "smartspec",
    "awc",
    "ladder",
    "fixed:2",
    "fixed:4",
    "fixed:8",
    "stream",
    "random",
    "none",
)
ROUND_TRIPS = (0.02, 0.06)
STREAMS = 12
ANY = "127.0.0.1:0"
KEY = "geomean_tokens_per_s"
BAR = 0.97
CLEAR_AFTER, FAR = 2, 0.85
"""After so many rounds whoever has less than this share of the best drops out."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=144)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--policy", action="append", default=[])
    parser.add_argument("--shared", action="store_true", help="one set of cores for all")
    parser.add_argument("--prompts", type=Path, default=ROOT.parent / "shared" / "prompts" / "spec_bench.jsonl")
    arguments = parser.parse_args()
    report = Report("policies")
    names = tuple(arguments.policy) or POLICIES
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        for name in _contenders(runs) if number >= CLEAR_AFTER else names:
            progress(f"round {number + 1} of {arguments.rounds}: {name}")
            runs[name].append(_measure(name, arguments))
            print(f"round {number + 1}, {name}: {runs[name][-1][KEY]:.1f} tokens/s", file=sys.stderr)
    rows = [["policy", "geomean tokens/s", "all tokens/s", "least", "Jain", "ttft p50", "tpot p50", "accepted length"]]
    for name, found in runs.items():
        figures = {
            key: _median(found, key) for key in ("geomean_tokens_per_s", "tokens_per_s", "min_tokens_per_s", "jain")
        }
        length = _median(found, "mean_accepted_length")
        report.figures[name] = figures
        rows.append(
            [
                name,
                f"{figures['geomean_tokens_per_s']:.1f}",
                f"{figures['tokens_per_s']:.1f}",
                f"{figures['min_tokens_per_s']:.1f}",
                f"{figures['jain']:.3f}",
                f"{statistics.median(one['ttft_s']['p50'] for one in found) * 1e3:.0f} ms",
                f"{statistics.median(one['tpot_s']['p50'] for one in found) * 1e3:.1f} ms",
                f"{length:.2f}" if length else "",
            ]
        )
    progress("")
    table(rows)
    if "fair-goodput" in names and len(names) > 1:
        others = {name: found for name, found in runs.items() if name != "fair-goodput"}
        best = max(others, key=lambda name: _median(others[name], KEY))
        pairs = zip(runs["fair-goodput"], others[best], strict=False)
        shares = [mine[KEY] / its[KEY] for mine, its in pairs]
        report.figures["fair-goodput against the best other, by round"] = {"policy": best, "shares": shares}
        report.bar(
            f"fair-goodput over {best}, geometric mean tokens/s, median of rounds", statistics.median(shares), BAR
        )
    return report.finish()


def _contenders(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Policies that can still be the best, and fair-goodput, whose figure is asked for."""
    medians = {name: _median(found, KEY) for name, found in runs.items()}
    least = FAR * max(medians.values())
    return [name for name, median in medians.items() if median >= least or name == "fair-goodput"]


def _median(found: list[dict[str, Any]], key: str) -> float:
    values = [one[key] for one in found if one[key] is not None]
    return float(statistics.median(values)) if values else 0.0


def _measure(policy: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What `specfleet bench` says of one policy's fleet after a warm-up."""
    with ExitStack() as stack:

        def daemon(*options: str) -> DaemonProcess:
            return stack.enter_context(DaemonProcess(*options, "--listen", ANY, "--http", "", "--metrics", ANY))

        def core(number: int) -> AbstractContextManager[None]:
            return nullcontext() if arguments.shared else pinned(number)

        stack.enter_context(core(1))
        with core(0):
            verifier = daemon("verifier", "--model", str(MODELS / "tiny-target"), "--speculation", policy)
        verifier.wait_ready(120)
        ways = [verifier.address, verifier.address]
        ways += [stack.enter_context(DelayProxy(verifier.address, trip / 2)).address for trip in ROUND_TRIPS]
        models = (str(MODELS / "tiny-draft"), "ngram", str(MODELS / "tiny-draft"), str(MODELS / "tiny-draft"))
        drafters = [
            daemon("drafter", "--model", model, "--verifier", way) for model, way in zip(models, ways, strict=True)
        ]
        for drafter in drafters:
            drafter.wait_ready(120)
        servers = [option for drafter in drafters for option in ("--server", drafter.address)]
        _bench(arguments, servers, arguments.requests // 2, 1)
        return _bench(arguments, servers, arguments.requests, 2)


def _bench(arguments: argparse.Namespace, servers: list[str], requests: int, seed: int) -> dict[str, Any]:
    options = ["--concurrency", str(STREAMS), "--requests", str(requests), "--max-tokens", str(arguments.tokens)]
    options += [
        "--temperature",
        "0",
        "--seed",
        str(seed),
        "--ignore-eos",
        "--json",
        "--prompts",
        str(arguments.prompts),
    ]
    result = subprocess.run(
        [sys.executable, "-m", "specfleet.cli.main", "bench", *servers, *options],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(result.stdout.splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
