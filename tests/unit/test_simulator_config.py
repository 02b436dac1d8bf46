"""Configuration of simulations: what is wrong is said in one line with file, key, value and the nearest that is right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.document import CONFIGS, changed, checked, find, parse, read
from simulator.search import cells
from specfleet.core.errors import ConfigurationError

FILE = Path("fleet.yaml")


def document(**changes: Any) -> dict[str, Any]:
    """A right one, with other values at dotted keys (written with double underscores)."""
    right: dict[str, Any] = {
        "duration": 10,
        "tiers": {"phone": {"count": 2, "network": {"round_trip": 0.02}}},
        "verifiers": {"gpu": {"profile": "qwen3-8b-rtx4090"}},
        "workload": {"closed_loop": {}},
        "classes": {"chat": {"tpot": 0.1}},
    }
    return changed(right, {key.replace("__", "."): value for key, value in changes.items()}, FILE)


def refusal(found: dict[str, Any]) -> str:
    with pytest.raises(ConfigurationError) as error:
        checked(found, FILE)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"routng": "p2c"}, ["unknown key routng", "did you mean routing?"]),
        ({"tiers__phone__draft_secnds": 1}, ["unknown key draft_secnds in tiers.phone", "did you mean draft_seconds?"]),
        ({"tiers__phone__network__jiter": 1}, ["jiter in tiers.phone.network", "did you mean jitter?"]),
        ({"workload__clased_loop": {}}, ["clased_loop in workload", "did you mean closed_loop?"]),
        ({"policies": ["fixd:4"]}, ["policies.0 is 'fixd:4'", "did you mean fixed?"]),
        ({"policies": ["fixed:99"]}, ["policies.0 is 'fixed:99'", "from 1 to 32"]),
        ({"policies": ["fixed:4+fif"]}, ["did you mean fifo?"]),
        ({"policies": ["sled+slo"]}, ["batches in its own way"]),
        ({"policies": []}, ["policies", "not empty"]),
        ({"routing": "jqs"}, ["routing is 'jqs'", "did you mean jsq?"]),
        ({"tiers__phone__service_class": "chta"}, ["tiers.phone.service_class is 'chta'", "did you mean chat?"]),
        ({"workload__classes": {"batch": 1}}, ["workload.classes is 'batch'", "must be one of chat"]),
        ({"verifiers__gpu__profile": "qwen3-8b-rtx490"}, ["verifiers.gpu.profile", "did you mean qwen3-8b-rtx4090?"]),
        (
            {"verifiers__gpu__profile": {"fixed": -1, "per_token": 0}},
            ["verifiers.gpu.profile.fixed is -1", "at least 0"],
        ),
        ({"tiers__phone__host": "desk"}, ["tiers.phone.host is 'desk'", "there are no hosts"]),
        (
            {"hosts": {"desk": {"processors": 2}}, "verifiers__gpu__host": "dsk"},
            ["verifiers.gpu.host is 'dsk'", "must be one of desk", "did you mean desk?"],
        ),
        ({"hosts": {"desk": {"processors": 0}}}, ["hosts.desk.processors is 0", "above 0"]),
        ({"verifiers__gpu": {}}, ["verifiers.gpu", "either a profile or a roofline"]),
        (
            {"verifiers__gpu": {"roofline": {"model": "qwen3-8b", "card": "h10"}}},
            ["verifiers.gpu.roofline.card is 'h10'", "must be one of"],
        ),
        ({"tiers__phone__acceptance": 1.5}, ["tiers.phone.acceptance is 1.5", "at most 1"]),
        ({"tiers__phone__acceptance": {"uniform": [0.9, 1.2]}}, ["tiers.phone.acceptance", "at most 1", "1.2"]),
        ({"tiers__phone__acceptance": {"unifrm": [0, 1]}}, ["'unifrm' is unknown", "did you mean uniform?"]),
        ({"tiers__phone__draft_seconds": {"uniform": [2, 1]}}, ["low at most high"]),
        ({"tiers__phone__draft_seconds": 0}, ["tiers.phone.draft_seconds is 0", "above 0"]),
        ({"tiers__phone__count": 0}, ["tiers.phone.count is 0", "at least 1"]),
        ({"faults": [{"at": 1, "seconds": 1, "crash": "gpv"}]}, ["faults.0.crash is 'gpv'", "did you mean gpu?"]),
        ({"faults": [{"at": 1, "seconds": 1, "cut": "phnoe"}]}, ["faults.0.cut is 'phnoe'", "did you mean phone?"]),
        ({"faults": [{"at": 1, "seconds": 1}]}, ["faults.0 is", "exactly one of crash, cut, slow"]),
        ({"faults": [{"at": 1, "seconds": 1, "cut": "phone", "by": 1}]}, ["faults.0", "by only with slow"]),
        ({"duration": -1}, ["duration is -1", "above 0"]),
        ({"warm_up": 20}, ["warm_up is 20", "shorter than the duration, 10"]),
        ({"workload__poisson": {"rate": 1}}, ["workload", "exactly one of closed_loop, poisson, bursts, trace"]),
        ({"classes__chat__ttft": 0}, ["classes.chat.ttft is 0", "above 0"]),
        ({"seeds": [-1]}, ["seeds.0 is -1", "at least 0"]),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], said: list[str]) -> None:
    message = refusal(document(**changes))
    assert message.startswith("fleet.yaml: ")
    for part in said:
        assert part in message


def test_all_mistakes_are_named_at_once() -> None:
    message = refusal(document(routng="p2c", duration=0))
    assert "routng" in message
    assert "duration is 0" in message


def test_a_list_whose_only_entry_is_wrong_is_not_called_empty() -> None:
    with pytest.raises(ConfigurationError) as caught:
        checked(document(policies=["fixd:4"]), FILE)
    assert "empty" not in str(caught.value)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """YAML itself would take the last one."""
    file = tmp_path / "twice.yaml"
    file.write_text("duration: 1\nseeds: [0]\nduration: 2\n")
    with pytest.raises(ConfigurationError, match=r"twice\.yaml: key duration stands twice, again in line 3"):
        read(file)


def test_broken_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("duration: 1\ntiers: {phone: {count: 1\n")
    with pytest.raises(ConfigurationError, match=r"broken\.yaml is not YAML: .* in line \d"):
        read(file)


def test_a_missing_file_names_those_that_ship() -> None:
    with pytest.raises(ConfigurationError, match=r"did you mean tutorial\.yaml\?"):
        find("tutrial.yaml")
    assert find("tutorial") == find("tutorial.yaml")


def test_a_profile_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"fixed": 0.01, "per_tokn": 1e-4}')
    with pytest.raises(ConfigurationError, match="unknown key per_tokn; did you mean per_token"):
        checked(document(verifiers__gpu__profile="own.json"), tmp_path / "fleet.yaml")


@pytest.mark.parametrize("name", sorted(one.name for one in CONFIGS.iterdir() if one.name.endswith(".yaml")))
def test_configurations_that_ship_are_right_and_short(name: str) -> None:
    """All cells of their grids, too; 600 drafters take less than 60 lines."""
    path = find(name)
    assert cells(read(path), path)
    assert len(path.read_text().splitlines()) < 60


def test_a_grid_is_the_product_of_its_axes() -> None:
    grid = {"tiers.phone.count": [1, 2], "net": {"near": {"tiers.phone.network.round_trip": 0.001}, "far": {}}}
    found = cells(document(grid=grid), FILE)
    assert [(1, "near"), (1, "far"), (2, "near"), (2, "far")] == [tuple(one.labels.values()) for one in found]
    assert found[2].config.tiers["phone"].count == 2
    assert found[2].config.tiers["phone"].network.round_trip.written == 0.001


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"tiers.phon.count": [1]}, "no section tiers.phon; did you mean phone?"),
        ({"tiers.phone.cuont": [1]}, "unknown key cuont in tiers.phone; did you mean count?"),
        ({"tiers.phone.count": [0]}, "tiers.phone.count is 0"),
        ({"tiers.phone.count": 3}, "must be a list"),
    ],
)
def test_a_grid_over_what_is_not_there_is_refused(grid: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        cells(document(grid=grid), FILE)
    assert said in str(error.value)


def test_a_configuration_survives_its_own_manifest() -> None:
    """What a manifest holds can be run again."""
    first = checked(document(tiers__phone__acceptance={"uniform": [0.1, 0.9]}, policies=["sled:2", "awc+fifo"]), FILE)
    again = checked(yaml.safe_load(yaml.safe_dump(first.model_dump(mode="json", exclude_none=True))), FILE)
    assert first.model_dump(mode="json") == again.model_dump(mode="json")


def test_what_the_documentation_shows_is_right() -> None:
    """Its whole example, and each section that can be added to it."""
    text = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    example, *more = (parse(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    assert checked(example, FILE).drafters == 400
    assert len(more) == 2
    for section in more:
        assert cells({**example, **section}, FILE)


def test_on_and_off_are_words() -> None:
    assert {"on": 1, "off": 2, "yes": "no"} == parse("{on: 1, off: 2, yes: no}")
    assert {"a": True} == parse("a: true")
