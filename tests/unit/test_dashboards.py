"""Dashboards, rules and alerts against what daemons export and what the documents say; a real Prometheus runs them in
tests/integration/test_prometheus.py."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from deploy.grafana import generate
from specfleet.observability.drafter import DrafterMetrics
from specfleet.observability.grpc_server import GrpcServerMetrics
from specfleet.observability.http_server import HttpServerMetrics
from specfleet.observability.verifier import VerifierGauges, VerifierMetrics
from support.metrics import Counts
from support.pair import ROOT
from support.prometheus import BOARDS, panels, rules

METRIC = re.compile(r"\b(?:specfleet_|grpc_server_|http_server_|process_)\w+")
RECORDED = re.compile(r"\bspecfleet:\w+:\w+")
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"}
"""From prometheus-client's ProcessCollector, where there is a /proc."""
EXPRESSIONS = [*panels(), *((rule.get("record") or rule["alert"], rule["expr"]) for rule in rules())]
ALERTS = [rule for rule in rules() if "alert" in rule]


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Names of all series that the two daemons have."""
    registry = CollectorRegistry()
    VerifierMetrics(registry)
    DrafterMetrics(registry)
    GrpcServerMetrics(registry, ("specfleet.v1.VerificationService",))
    HttpServerMetrics(registry).expect("/v1/completions")
    registry.register(VerifierGauges(Counts()))
    return {sample.name for family in registry.collect() for sample in family.samples} | PROCESS


def test_the_dashboards_are_what_the_code_makes() -> None:
    """Mend it with `make dashboards`."""
    assert [] == generate.difference(generate.generate())


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_expressions_name_what_there_is(exported: set[str], where: str, expression: str) -> None:
    """Metrics that daemons export, and series that rules record."""
    names = set(METRIC.findall(re.sub(r'"[^"]*"', '""', expression)))
    assert set() == names - exported
    assert set() == set(RECORDED.findall(expression)) - {rule.get("record") for rule in rules()}
    assert names or RECORDED.search(expression) or "up{" in expression or "__name__" in expression


def test_every_metric_is_on_a_dashboard(exported: set[str]) -> None:
    """What is counted can be looked at. Build information is asked for by a pattern of names."""
    shown = " ".join(expression for _, expression in panels())
    families = {re.sub(r"_(bucket|sum|count|total|created|info)$", "", name) for name in exported}
    assert {"specfleet_verifier_build", "specfleet_drafter_build"} == {one for one in families if one not in shown}


@pytest.mark.parametrize("name", [path.stem for path in BOARDS.glob("*.json")])
def test_a_dashboard_can_be_loaded(name: str) -> None:
    """A title, a uid of its own, panels with numbers of their own, all with a title, a place and a data source to choose."""
    board: dict[str, Any] = json.loads((BOARDS / f"{name}.json").read_text())
    assert board["uid"] == f"specfleet-{name}" and board["title"].startswith("specfleet / ")
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(numbers) == len(set(numbers)) and 0 not in numbers
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(places) == len(set(places))
    for panel in board["panels"]:
        assert panel["title"] and 0 <= panel["gridPos"]["x"] < 24 >= panel["gridPos"]["x"] + panel["gridPos"]["w"]
        if panel["type"] != "row":
            assert panel["targets"] and panel["datasource"]["uid"] == "${datasource}"
    variables = [one["name"] for one in board["templating"]["list"]]
    assert ["datasource", "verifier", "drafter"] == variables


@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_an_alert_has_its_lines_in_the_runbook(alert: dict[str, Any]) -> None:
    """Its annotation names a heading of docs/operations.md, which says what to do."""
    file, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert anchor == alert["alert"].lower()
    assert re.search(rf"^### {alert['alert']}\n\n\S", (ROOT / file).read_text(), re.MULTILINE)
    assert alert["labels"]["severity"] in ("critical", "warning")
