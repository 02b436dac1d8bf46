"""A real Prometheus (Debian's package `prometheus`) on the files that ship, with windows short enough for a test."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.pair import ROOT

FOLDER = ROOT / "deploy" / "prometheus"
BOARDS = ROOT / "deploy" / "grafana" / "dashboards"
WINDOW = "8s"
"""In place of whatever window an expression looks back over,"""
EVERY = "1s"
"""with scrapes and evaluations so often."""
READY_SECONDS = 30.0

missing = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
needs_prometheus = pytest.mark.skipif(
    bool(missing), reason=f"{' and '.join(missing)} not on PATH: apt-get install prometheus (or unpack the package)"
)


def promtool(*arguments: str) -> str:
    """What it says; fails with that where it finds a fault."""
    found = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def shortened(expression: str) -> str:
    """With short windows, and a dashboard's variables filled in."""
    text = re.sub(r"\[(\d+[smhd]|\$__rate_interval)\]", f"[{WINDOW}]", expression)
    return re.sub(r"\$(verifier|drafter)\b", ".*", text)


def rules() -> list[dict[str, Any]]:
    """All rules that ship."""
    files = sorted((FOLDER / "rules").glob("*.yml"))
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[tuple[str, str]]:
    """Expressions of all panels of all dashboards, with where they stand."""
    found = []
    for file in sorted(BOARDS.glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            found += [(f"{file.stem}: {panel['title']}", target["expr"]) for target in panel.get("targets", ())]
    return found


class Prometheus:
    """Asked over HTTP."""

    def __init__(self, address: str) -> None:
        self.address = address

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Series of an instant vector (a scalar is one without labels). Fails with Prometheus' own words."""
        data = self._get("query", query=expression)
        rows = data["result"]
        if data["resultType"] == "scalar":
            return [({}, float(rows[1]))]
        return [(row["metric"], float(row["value"][1])) for row in rows]

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {one["labels"]["alertname"] for one in self._get("alerts")["alerts"] if one["state"] == "firing"}

    def _get(self, what: str, **arguments: str) -> Any:
        url = f"http://{self.address}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{arguments}: {json.load(error)['error']}") from None

    def wait_ready(self) -> None:
        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < end, f"Prometheus was not ready within {READY_SECONDS:g} s"
                time.sleep(0.1)


def _configuration(folder: Path, targets: Mapping[str, Sequence[str]]) -> Path:
    """The shipped files with `targets` by job, short windows, and no patience."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert {job["job_name"] for job in config["scrape_configs"]} == set(targets)
    config["global"] = {"scrape_interval": EVERY, "scrape_timeout": EVERY, "evaluation_interval": EVERY}
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": list(targets[job["job_name"]])}]
    (folder / "rules").mkdir()
    for file in (FOLDER / "rules").glob("*.yml"):
        document = yaml.safe_load(file.read_text())
        for rule in (rule for group in document["groups"] for rule in group["rules"]):
            rule["expr"] = shortened(rule["expr"])
            if "for" in rule:
                rule["for"] = "1s"
        (folder / "rules" / file.name).write_text(yaml.safe_dump(document))
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, Sequence[str]]) -> Iterator[Prometheus]:
    """Scrapes `targets` (by job) and evaluates the shipped rules until the block ends."""
    config = _configuration(folder, targets)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        found = Prometheus(address)
        found.wait_ready()
        yield found
    finally:
        process.terminate()
        process.wait(30)
