"""What the benchmarks' figures become: sections of a document, ratios of a release, regressions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import compare, controller, run
from benchmarks.agreement import Agreement
from benchmarks.common import Report
from benchmarks.compare import Bar
from benchmarks.growth import fitted

DOCUMENT = "# Results\n\n<!-- bench:peers -->\nold\n<!-- /bench:peers -->\n\nWritten by hand.\n"


def report(**figures: float) -> dict[str, Any]:
    """The JSON line of a script with bars of these figures, each at least 1; `cost` at most 1, `ms` no ratio."""
    one = Report("some")
    one.table("A table.", [["", "ms"], ["a", "1"]])
    for line, figure in figures.items():
        one.bar(line, figure, 1.0, at_most=line == "cost", ratio=line != "ms")
    found: dict[str, Any] = json.loads(json.dumps(vars(one)))
    return {"machine": {"cpu": "CPU", "cores": 2}, "commit": "abc", **found}


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    once = run.written(DOCUMENT, "peers", "new")

    assert DOCUMENT.replace("old", "new") == once == run.written(once, "peers", "new")


def test_a_new_section_goes_to_the_end() -> None:
    found = run.written(DOCUMENT, "growth", "new")

    assert found.startswith(DOCUMENT.rstrip()) and found.endswith(
        "<!-- bench:growth -->\nnew\n<!-- /bench:growth -->\n"
    )
    assert found == run.written(found, "growth", "new")


def test_a_section_without_its_end_is_left_alone() -> None:
    with pytest.raises(SystemExit, match="has no <!-- /bench:peers -->"):
        run.written(DOCUMENT.replace("<!-- /bench:peers -->", ""), "peers", "new")


def test_a_section_has_tables_and_says_which_bars_are_missed() -> None:
    found = run.section(report(speed=0.5, cost=0.5))

    assert "A table.\n\n|  | ms |\n|---|---|\n| a | 1 |" in found
    assert "| speed | 0.5 | at least 1 | **missed** |\n| cost | 0.5 | at most 1 | kept |" in found


def test_times_are_not_recorded() -> None:
    """A release keeps ratios, which other machines have, too."""
    assert ["speed", "cost"] == [row["line"] for row in run.kept(report(speed=2.0, cost=0.5, ms=3.0))["ratios"]]


@pytest.mark.parametrize(
    ("before", "after", "at_most", "share"),
    [
        (2.0, 1.0, False, 1.0),
        (1.0, 2.0, False, -0.5),
        (1.0, 1.5, True, 0.5),
        (2.0, 1.0, True, -0.5),
        (0.0, 0.0, True, 0.0),
    ],
)
def test_worse_is_less_speed_or_more_cost(before: float, after: float, at_most: bool, share: float) -> None:
    assert share == Bar(after, at_most).worse_than(Bar(before, at_most))


def test_a_regression_is_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """Beyond the tolerance only; what one of them does not have is named and compared with nothing."""
    before = compare.recorded({"some": run.kept(report(speed=2.0, cost=0.5, gone=1.0))})
    slower = compare.recorded({"some": run.kept(report(speed=1.0, cost=0.52))})

    assert 0 == compare.say(("a", "b"), before, before, 0.1)
    assert 1 == compare.say(("a", "b"), before, slower, 0.1)
    said = capsys.readouterr().out
    assert "some: speed" in said and "+100.0%  REGRESSION" in said and said.count("REGRESSION") == 1
    assert "in one of them only: some: gone" in said


def test_a_line_is_found_and_its_errors_are_relative() -> None:
    """0.01 + 0.002 x is fitted exactly; a point that is twice as high is an error of a half."""
    x = [1.0, 2.0, 4.0, 8.0, 16.0]
    exact = fitted(x, [0.01 + 0.002 * at for at in x])
    bent = fitted([1.0, 1.0, 1.0, 2.0], [0.01, 0.01, 0.02, 0.01])

    assert (pytest.approx(0.01), pytest.approx(0.002), pytest.approx(1.0), pytest.approx(0.0, abs=1e-9)) == (
        exact.fixed,
        exact.slope,
        exact.r2,
        exact.worst,
    )
    assert 0.3 < bent.worst < 0.6


def texts(*lines: str) -> Agreement:
    """`x` where the draft model agrees. A step of the target takes four times what a guess does."""
    return Agreement([[mark == "x" for mark in line] for line in lines], 0.004, 0.006, 0.001)


def test_no_stream_gets_ahead_of_a_verifier_further_away_than_its_runs_are_long() -> None:
    # After a round trip of 12 ms and a step three steps have passed, in which guesses come up four to one.
    assert texts("xxx.xxx.").stream_ceiling(0.012, 8) == 1.0
    assert texts(64 * "x").stream_ceiling(0.012, 8) > 3.0
    assert texts(64 * "x").stream_ceiling(0.012, 1) < 2.0
    assert texts(64 * ".").stream_ceiling(0.0, 8) == 1.0


def test_a_stream_that_is_there_in_time_writes_a_run_at_once() -> None:
    # One step in which nothing has arrived yet, one with the four guesses that have by then, one for the rest.
    assert texts("xxxxxxx.").stream_ceiling(0.0, 8) == 8 / 3


def test_only_a_draft_that_is_right_with_the_token_behind_it_saves_a_round() -> None:
    # Rounds of 5, 5 and 1 tokens; the second finds its draft there, and takes 6 of 24 ms.
    assert texts("xxxxxxxxx..").overlap_ceiling(0.024) == pytest.approx(3 / (2 + 0.25))
    assert texts("xxxx.xxxx.x").overlap_ceiling(0.024) == 1.0


def test_a_controllers_steps_are_timed() -> None:
    """`controller.py` in its smallest size: every step has a plan, a commit and verdicts, with classes and without."""
    for classes in (False, True):
        played = controller.Load(20, classes, 64).run(5)
        assert len(played.plans) == len(played.commits) == 5 and min(played.plans + played.commits) > 0.0
        assert all(played.verdicts)
    assert 0.0 < controller.bare_step(3, sessions=20, verdicts=10)["p50"]
    assert 0.0 < controller.one_decision()
