"""Workloads: traces as they are published, arrivals of the rate they are asked for, prompts that share what they should."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from simulator.config import Workload
from simulator.distributions import parse
from simulator.recorded import Recorded, read_acceptance
from simulator.workload import Requests, arrivals
from specfleet.bench.traces import read_trace
from specfleet.core.errors import ConfigurationError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
MOONCAKE = """{"timestamp": 0, "input_length": 1030, "output_length": 5, "hash_ids": [0, 1, 2]}
{"timestamp": 3000, "input_length": 1500, "output_length": 9, "hash_ids": [0, 1, 7]}
"""


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def workload(**keys: Any) -> Workload:
    return Workload.model_validate(keys)


def test_azures_columns_are_read_directly(tmp_path: Path) -> None:
    rows = read_trace(written(tmp_path, "azure.csv", AZURE))
    assert [(374, 44), (396, 109), (879, 55)] == [(row.prompt_tokens, row.output_tokens) for row in rows]
    assert [0.0, 4.314579, 4.541877] == pytest.approx([row.at for row in rows], abs=1e-5)


def test_mooncakes_columns_are_read_directly(tmp_path: Path) -> None:
    rows = read_trace(written(tmp_path, "mooncake.jsonl", MOONCAKE))
    assert [(0.0, 1030, 5), (3.0, 1500, 9)] == [(row.at, row.prompt_tokens, row.output_tokens) for row in rows]
    assert rows[1].blocks == (0, 1, 7)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", AZURE + "2023-11-16 18:15:52,abc,5\n", "line 5: ContextTokens is 'abc'"),
        ("a.csv", AZURE + "2023-11-16 18:15:52,12\n", "line 5: 2 columns, must be 3"),
        ("a.csv", AZURE + "yesterday,12,5\n", "line 5: TIMESTAMP is 'yesterday'"),
        ("a.csv", AZURE + "2023-11-16 18:15:52,12,0\n", "line 5: GeneratedTokens is '0'"),
        ("a.csv", "TIMESTAMP,ContextToken,GeneratedTokens\n", "no column ContextTokens; did you mean ContextToken?"),
        ("m.jsonl", MOONCAKE + '{"timestamp": 1, "input_length": 5}\n', "line 3: output_length is missing"),
        ("m.jsonl", MOONCAKE + "{oops\n", "line 3: is not JSON"),
        ("m.jsonl", MOONCAKE + '{"timestamp": "x", "input_length": 5, "output_length": 1}\n', "timestamp is 'x'"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no requests"),
    ],
)
def test_an_unreadable_row_is_named_with_its_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        read_trace(written(tmp_path, name, text))
    assert name in str(error.value)
    assert said in str(error.value)


def test_prompts_of_a_trace_share_the_blocks_that_it_says(tmp_path: Path) -> None:
    own = workload(trace={"file": "m.jsonl"})
    first, second = read_trace(written(tmp_path, "m.jsonl", MOONCAKE))
    requests = Requests(own, random.Random(0))
    one = requests.prompt(requests.next(0.0, first))
    two = requests.prompt(requests.next(0.0, second))
    assert (1030, 1500) == (len(one), len(two))
    assert one[:1024] == two[:1024]
    assert one[1024:] != two[1024:1030]


def test_prompts_share_their_groups_prefix_and_nothing_else() -> None:
    requests = Requests(
        workload(closed_loop={}, prompt_tokens=100, prefix={"groups": 1, "tokens": 64}), random.Random(0)
    )
    one, two = (requests.prompt(requests.next()) for _ in range(2))
    assert one[:64] == two[:64]
    assert one[64:] != two[64:]
    apart = Requests(workload(closed_loop={}, prompt_tokens=100), random.Random(0))
    assert apart.prompt(apart.next())[:16] != apart.prompt(apart.next())[:16]


def test_poisson_arrivals_have_their_rate() -> None:
    """Mean and spread of the gaps: both 1 / rate."""
    found = list(arrivals(workload(poisson={"rate": 10.0}), random.Random(1), 2000.0))
    assert 10.0 == pytest.approx(len(found) / 2000.0, rel=0.03)
    gaps = [after - before for before, after in itertools.pairwise(found)]
    deviation = (sum((gap - 0.1) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert 0.1 == pytest.approx(deviation, rel=0.05)


def test_bursts_have_both_rates() -> None:
    own = workload(bursts={"rate": 2.0, "burst_rate": 20.0, "every": 10.0, "length": 2.0})
    found = list(arrivals(own, random.Random(1), 2000.0))
    inside = sum(at % 10.0 < 2.0 for at in found)
    assert 20.0 == pytest.approx(inside / 400.0, rel=0.05)
    assert 2.0 == pytest.approx((len(found) - inside) / 1600.0, rel=0.06)


@pytest.mark.parametrize(
    ("written_as", "mean"),
    [
        (3, 3.0),
        ({"uniform": [1, 5]}, 3.0),
        ({"log_uniform": [1, 10]}, 9.0 / 2.302585),
        ({"normal": {"mean": 3, "sd": 0.5}}, 3.0),
        ({"log_normal": {"mean": 1.7, "cv": 0.6}}, 1.7),
        ({"choice": [1, 2, 9]}, 4.0),
    ],
)
def test_distributions_have_the_mean_they_say(written_as: Any, mean: float) -> None:
    rng, law = random.Random(5), parse(written_as)
    assert mean == pytest.approx(sum(law.draw(rng) for _ in range(20_000)) / 20_000, rel=0.02)


def test_recorded_acceptance_is_played_position_by_position(tmp_path: Path) -> None:
    (text,) = read_acceptance(written(tmp_path, "texts.txt", "1101\n\n"))
    one = Recorded([text], random.Random(0))
    assert [2, 1, 0, 3] == [one.run(position, 8) for position in range(4)]
    assert 2 == one.run(3, 2)
    all_right = Recorded(read_acceptance(written(tmp_path, "right.txt", "11")), random.Random(0))
    assert 9 == all_right.run(1, 9)


@pytest.mark.parametrize(("text", "said"), [("10\n12\n", "line 2: is '12', must be 0s and 1s"), ("", "holds no texts")])
def test_an_unreadable_acceptance_trace_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        read_acceptance(written(tmp_path, "texts.txt", text))
