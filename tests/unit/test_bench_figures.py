"""Figures of a load run against numbers worked out by hand, and against numpy and scipy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from specfleet.bench.daemons import DaemonFigures
from specfleet.bench.figures import figures, geometric_mean, jain, percentiles
from specfleet.bench.load import Arrival, Record
from specfleet.core.errors import Overloaded
from specfleet.core.types import Mode, ServiceClass, Speculation

SHAPE = """
policy seed clients duration_s tokens tokens_per_s geomean_tokens_per_s min_tokens_per_s jain ttft_s tpot_s e2e_s slo
goodput_requests_per_s goodput_tokens_per_s rounds acceptance_rate mean_accepted_length accepted_per_position
wasted_draft_tokens wasted_drafting_s verifier bytes_up bytes_down failures resumes wall_s
""".split()  # noqa: SIM905
SPEEDS = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=50)


def record(
    *arrivals: tuple[float, int],
    stream: int = 0,
    begun: float = 0.0,
    rounds: tuple[tuple[int, int], ...] = (),
    **more: Any,
) -> Record:
    """Tokens at moments; `rounds`: (drafted, accepted), one after another, in the first arrivals."""
    speculation = Speculation()
    for drafted, accepted in rounds:
        speculation.count(Mode.ROUND, drafted, accepted, accepted + 1)
    accepted_ = [accepted for _, accepted in rounds] + [0] * len(arrivals)
    came = tuple(Arrival(at, tokens, right) for (at, tokens), right in zip(arrivals, accepted_, strict=False))
    ended = more.pop("ended", arrivals[-1][0] if arrivals else begun + 1.0)
    finished = more.pop("finished", "error" not in more)
    return Record(
        stream=stream, begun=begun, ended=ended, finished=finished, arrivals=came, speculation=speculation, **more
    )


def figures_of(*records: Record, classes: tuple[ServiceClass, ...] = (), daemons: DaemonFigures | None = None) -> Any:
    return figures(records, classes, daemons or DaemonFigures(), streams=2, seed=5, wall_s=9.0)


def test_times_of_one_request() -> None:
    """Sent at 1, tokens at 1.5 (one) and 2.5 (four): first after 0.5, then 1 s for four more, 1.5 in all."""
    found = record((1.5, 1), (2.5, 4), begun=1.0, ended=2.75)

    assert (0.5, 0.25, 1.5, 1.75, 5) == (found.ttft, found.tpot, found.e2e, found.busy, found.tokens)


def test_a_single_token_has_no_pace() -> None:
    """tpot needs two tokens: a request of one does not count in its percentiles."""
    found = figures_of(record((1.0, 1)), record((1.0, 1), (3.0, 1)))

    assert {"p50": 2.0, "p95": 2.0, "p99": 2.0} == found["tpot_s"]


def test_throughput_by_hand() -> None:
    """Two lanes, one busy for 2 + 2 s with 10 + 10 tokens, one for 4 s with 10: 30 tokens in 5 s, speeds 5 and 2.5."""
    found = figures_of(
        record((2.0, 10)),
        record((5.0, 10), begun=3.0),
        record((4.0, 10), stream=1),
    )

    assert (5.0, 30, 6.0, 2, 5, 9.0) == tuple(
        found[name] for name in ("duration_s", "tokens", "tokens_per_s", "clients", "seed", "wall_s")
    )
    assert 12.5**0.5 == pytest.approx(found["geomean_tokens_per_s"])
    assert 2.5 == found["min_tokens_per_s"]
    assert 7.5**2 / (2 * (25 + 6.25)) == pytest.approx(found["jain"])


@given(SPEEDS)
def test_geometric_mean_is_scipys(values: list[float]) -> None:
    """Of any positive numbers."""
    assert stats.gmean(values) == pytest.approx(geometric_mean(values))


@given(SPEEDS)
def test_jain_is_one_over_one_plus_the_squared_variation(values: list[float]) -> None:
    """J = 1 / (1 + c^2), c the coefficient of variation; so between 1/n and 1, and 1 where all are equal."""
    assert 1 / (1 + stats.variation(values) ** 2) == pytest.approx(jain(values))
    assert 1.0 == pytest.approx(jain([values[0]] * 7))


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=60))
def test_percentiles_are_scipys(values: list[float]) -> None:
    """Linear between ranks."""
    expected = [stats.scoreatpercentile(values, percent) for percent in (50, 95, 99)]

    assert expected == pytest.approx(list(percentiles(values).values()))


def test_percentiles_by_hand() -> None:
    """Of 0 to 100 they are themselves."""
    assert {"p50": 50.0, "p95": 95.0, "p99": 99.0} == percentiles(list(range(101)))


def test_speculation_by_hand() -> None:
    """Rounds (3 drafted, 2 right), (4, 4), (2, 0): 6 of 9 accepted, 1 + 6/3 long, positions 2/3 2/3 1/3 1/3."""
    found = figures_of(
        record((1.0, 3), (2.0, 5), rounds=((3, 2), (4, 4))),
        record((1.0, 1), (2.0, 1), rounds=((2, 0),)),
        daemons=DaemonFigures(stale=7, discarded=8, wasted_drafting_s=0.5),
    )

    assert (3, 6 / 9, 3.0) == (found["rounds"], found["acceptance_rate"], found["mean_accepted_length"])
    assert [2 / 3, 2 / 3, 1 / 3, 1 / 3] == found["accepted_per_position"]
    assert found["mean_accepted_length"] - 1 == pytest.approx(sum(found["accepted_per_position"]))
    assert {"refused": 3, "stale": 7, "discarded": 8} == found["wasted_draft_tokens"]
    assert 0.5 == found["wasted_drafting_s"]


def test_nothing_drafted_is_not_a_rate() -> None:
    """Target-only: no acceptance rate and no accepted length, rather than 0 or 1."""
    found = figures_of(record((1.0, 3)))

    assert (0, None, None, []) == tuple(
        found[name] for name in ("rounds", "acceptance_rate", "mean_accepted_length", "accepted_per_position")
    )


CLASSES = (ServiceClass("fast", 0.5, 0.1), ServiceClass("first", ttft_seconds=0.5), ServiceClass("pace", None, 0.1))


@pytest.mark.parametrize(
    ("name", "first", "second", "kept"),
    [
        ("fast", 0.5, 0.6, True),
        ("fast", 0.51, 0.6, False),
        ("fast", 0.5, 0.61, False),
        ("first", 0.5, 9.0, True),
        ("first", 0.6, 0.6, False),
        ("pace", 5.0, 5.1, True),
        ("pace", 0.1, 0.3, False),
        ("", 99.0, 199.0, True),
        ("unheard of", 99.0, 199.0, True),
    ],
)
def test_targets(name: str, first: float, second: float, kept: bool) -> None:
    """Both targets must be kept, at most their value; one that is absent, or a class without any, asks for nothing."""
    found = figures_of(record((first, 1), (second, 1), service_class=name), classes=CLASSES)

    assert {name: {"requests": 1, "attained": float(kept)}} == found["slo"]
    assert (2 / second if kept else 0.0) == pytest.approx(found["goodput_tokens_per_s"])


def test_goodput_counts_what_was_kept() -> None:
    """Of four requests in 10 s one was late and one failed: goodput is two requests and their 3 + 5 tokens."""
    found = figures_of(
        record((0.4, 3), service_class="fast"),
        record((0.9, 4), service_class="fast"),
        record((10.0, 5)),
        record((0.1, 9), service_class="fast", error=Overloaded("full")),
        classes=CLASSES,
    )

    assert {"": {"requests": 1, "attained": 1.0}, "fast": {"requests": 3, "attained": 1 / 3}} == found["slo"]
    assert (0.2, 0.8, 2.1, 1) == tuple(
        pytest.approx(found[name])
        for name in ("goodput_requests_per_s", "goodput_tokens_per_s", "tokens_per_s", "failures")
    )


def test_failures_are_counted_and_measure_nothing_else() -> None:
    """A refused request is in no percentile, and its stream, which was never served, in no mean of streams."""
    found = figures_of(record((1.0, 2), (2.0, 2)), record(stream=1, ended=50.0, error=Overloaded("full")))

    assert (1, 1.0, 2.0, 2.0) == (
        found["failures"],
        found["ttft_s"]["p99"],
        found["e2e_s"]["p99"],
        found["min_tokens_per_s"],
    )


def test_what_was_cut_off_is_nobodys_failure() -> None:
    """A request under way when the run was interrupted: its tokens count, its times and its class do not."""
    found = figures_of(record((1.0, 2), (2.0, 2)), record((1.5, 6), stream=1, ended=4.0, finished=False))

    assert (10, 4.0, 0) == (found["tokens"], found["duration_s"], found["failures"])
    assert {"": {"requests": 1, "attained": 1.0}} == found["slo"]
    assert 1.5 == found["min_tokens_per_s"]
    assert 2.0 == found["e2e_s"]["p99"]


def test_nothing_at_all() -> None:
    """No records, no figures, no division by zero; and the object is JSON either way."""
    found = figures_of()

    assert found["geomean_tokens_per_s"] is found["jain"] is found["ttft_s"]["p50"] is None
    assert (0, 0.0, {}) == (found["tokens"], found["tokens_per_s"], found["slo"])
    json.dumps(found, allow_nan=False)


def test_shape() -> None:
    """Every key of the documented object, in its order, with null where nobody asked the daemons."""
    found = figures_of(record((1.0, 2), policy="fixed:4"), record((1.0, 2), policy="none"))

    assert found["policy"] == "fixed:4, none"
    assert SHAPE == list(found)
    assert found["verifier"] == {"busy": None, "mean_batch": None, "step_s": {"p50": None, "p95": None, "p99": None}}
    assert found["wasted_draft_tokens"] == {"refused": 0, "stale": None, "discarded": None}


def test_percentiles_of_many_requests_are_numpys() -> None:
    """Through the whole of it: ttft, tpot and e2e of random requests."""
    generator = np.random.default_rng(1)
    firsts, lasts = generator.uniform(0.1, 1.0, 200), generator.uniform(2.0, 5.0, 200)
    found = figures_of(*(record((first, 1), (last, 8)) for first, last in zip(firsts, lasts, strict=True)))

    for name, values in (("ttft_s", firsts), ("tpot_s", (lasts - firsts) / 8), ("e2e_s", lasts)):
        assert np.percentile(values, [50, 95, 99]).tolist() == pytest.approx(list(found[name].values()))
