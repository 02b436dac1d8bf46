"""Are we slower than we were? Ratios of two releases, or of two commits measured in turns on this machine.

    python benchmarks/compare.py 0.1.0 0.2.0                     # files in benchmarks/results/, as run.py --record wrote them
    python benchmarks/compare.py main HEAD --only step_overhead growth --rounds 3

Two recorded releases: each one's ratios, measured on whatever machine it was. Two commits: both are checked out, the scripts
of each run in turns `--rounds` times, and all their bars are compared by medians, times too, since the machine is the same.
What is worse by more than `--tolerance` is a regression, and the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, table
from benchmarks.run import QUICK, RESULTS, run

Found = dict[tuple[str, str], "Bar"]
"""By script and line."""


@dataclass(frozen=True, slots=True)
class Bar:
    figure: float
    at_most: bool

    def worse_than(self, other: Bar) -> float:
        """By what share it is worse; negative where it is better."""
        low, high = (other.figure, self.figure) if self.at_most else (self.figure, other.figure)
        return high / low - 1.0 if low > 0.0 else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--only", nargs="+", choices=list(QUICK), default=["step_overhead", "growth"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=0.10, metavar="SHARE")
    arguments = parser.parse_args()
    names = (arguments.before, arguments.after)
    if all((RESULTS / f"{name}.json").exists() for name in names):
        before, after = (recorded(json.loads((RESULTS / f"{name}.json").read_text())) for name in names)
    else:
        before, after = measured(names, arguments.only, arguments.rounds)
    return say(names, before, after, arguments.tolerance)


def recorded(release: dict[str, Any]) -> Found:
    return {(name, row["line"]): _bar(row) for name, report in release.items() for row in report["ratios"]}


def measured(commits: tuple[str, str], scripts: list[str], rounds: int) -> tuple[Found, Found]:
    """Medians of both, in turns. Each runs its own scripts, in a checkout of its own; both must have them."""
    figures: tuple[dict[tuple[str, str], list[Bar]], ...] = ({}, {})
    with tempfile.TemporaryDirectory() as folder:
        checkouts = [_checked_out(Path(folder) / str(n), commit) for n, commit in enumerate(commits)]
        try:
            for number in range(rounds):
                for script in scripts:
                    for commit, checkout, found in zip(commits, checkouts, figures, strict=True):
                        print(f"round {number + 1}: {script} of {commit}", flush=True)
                        report = run(checkout, script, echo=False)
                        if report is None:
                            raise SystemExit(f"{script} fails at {commit}; leave it out with --only")
                        for row in report["bars"]:
                            found.setdefault((script, row["line"]), []).append(_bar(row))
        finally:
            for checkout in checkouts:
                _git("worktree", "remove", "--force", str(checkout))
    before, after = (
        {key: Bar(statistics.median(one.figure for one in bars), bars[0].at_most) for key, bars in found.items()}
        for found in figures
    )
    return before, after


def say(names: tuple[str, str], before: Found, after: Found, tolerance: float) -> int:
    rows, worse = [["", *names, "worse by"]], 0
    for key in before.keys() & after.keys():
        share = after[key].worse_than(before[key])
        worse += share > tolerance
        mark = "  REGRESSION" if share > tolerance else ""
        figures = (f"{found[key].figure:.3g}" for found in (before, after))
        rows.append([f"{key[0]}: {key[1]}", *figures, f"{share:+.1%}{mark}"])
    table([rows[0], *sorted(rows[1:])])
    for key in sorted(before.keys() ^ after.keys()):
        print(f"in one of them only: {key[0]}: {key[1]}")
    print(
        f"\n{worse} worse by more than {tolerance:.0%}" if worse else f"\nnothing is worse by more than {tolerance:.0%}"
    )
    return 1 if worse else 0


def _bar(row: dict[str, Any]) -> Bar:
    # Reports of before `at_most` was said: what is kept although it is below the bar may be at most that.
    return Bar(row["figure"], row.get("at_most", row["ok"] == (row["figure"] <= row["bar"])))


def _checked_out(folder: Path, commit: str) -> Path:
    _git("worktree", "add", "--detach", str(folder), commit)
    return folder


def _git(*words: str) -> None:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"git {words[0]} {words[1]}: {done.stderr.strip()}")


if __name__ == "__main__":
    sys.exit(main())
