"""The quick set: runs it, writes its tables into docs/results.md, and keeps its ratios for later releases.

    python benchmarks/run.py [--only NAME …] [--record RELEASE] [--results docs/results.md]

Tables stand between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`; what is between them is never written by hand. With
`--record` the ratios go to benchmarks/results/RELEASE.json. Absolute times do not: they belong to a machine, and compare.py
has no use for them. A bar that is missed is said in the table; the exit code is 1 if a script fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT

QUICK: dict[str, tuple[str, ...]] = {
    "footprint": (),
    "step_overhead": ("--steps", "60", "--rounds", "100", "--profile", "15"),
    "growth": ("--rounds", "8", "--sessions", "800"),
    "single_stream": ("--rounds", "2"),
    "peers": ("--rounds", "2"),
}
"""Script -> its options; some ten minutes on an idle machine of two cores."""
RESULTS = ROOT / "benchmarks" / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(QUICK), default=list(QUICK), metavar="NAME")
    parser.add_argument("--record", metavar="RELEASE", help="name of the file in benchmarks/results/")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results.md")
    arguments = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    failed = []
    for name in arguments.only:
        print(f"== {name}", flush=True)
        report = run(ROOT, name)
        if report is None:
            failed.append(name)
            continue
        found[name] = report
        arguments.results.write_text(written(arguments.results.read_text(), name, section(report)))
    if arguments.record:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{arguments.record}.json"
        path.write_text(json.dumps({name: kept(report) for name, report in found.items()}, indent=1) + "\n")
        print(f"ratios of {', '.join(found)} in {path.relative_to(ROOT)}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def run(root: Path, name: str, echo: bool = True) -> dict[str, Any] | None:
    """The JSON line of a script in the checkout at `root`; None if it failed. Missed bars are no failure."""
    command = [sys.executable, str(root / "benchmarks" / f"{name}.py"), *QUICK[name]]
    # Daemons it starts are to be of that checkout, too.
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    lines = done.stdout.splitlines()
    if echo:
        print("\n".join(lines[:-1]), flush=True)
    try:
        found: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        return None
    return found


def section(report: dict[str, Any]) -> str:
    """A report as markdown: its tables, then its bars."""
    machine = report["machine"]
    parts = [
        f"`python benchmarks/{report['benchmark']}.py`, commit {report['commit']}, {machine['cores']} cores of an "
        f"{machine['cpu']}."
    ]
    parts += [f"{one['title']}\n\n{markdown(one['rows'])}" for one in report.get("tables", ())]
    bars = [["bar", "figure", "wanted", ""]]
    for row in report["bars"]:
        sign = "at most " if row.get("at_most") else "at least "
        bars.append(
            [row["line"], f"{row['figure']:.3g}", f"{sign}{row['bar']:g}", "kept" if row["ok"] else "**missed**"]
        )
    parts.append(markdown(bars))
    return "\n\n".join(parts)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *others = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *others])


def written(text: str, name: str, body: str) -> str:
    """`text` with the section of that name replaced, or added at the end."""
    first, last = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    section_ = f"{first}\n{body}\n{last}"
    if first not in text:
        return f"{text.rstrip()}\n\n### {name}\n\n{section_}\n"
    before, _, rest = text.partition(first)
    _, found, after = rest.partition(last)
    if not found:
        raise SystemExit(f"{first} has no {last} behind it; put it back")
    return before + section_ + after


def kept(report: dict[str, Any]) -> dict[str, Any]:
    """What is worth comparing on another day: ratios."""
    return {
        "commit": report["commit"],
        "machine": report["machine"],
        "ratios": [row for row in report["bars"] if row.get("ratio", True)],
    }


if __name__ == "__main__":
    sys.exit(main())
