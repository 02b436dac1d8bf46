"""The files of deploy/ as data: documents of Kubernetes, compose and systemd, and the commands of ours in all of them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from dockerfile_parse import DockerfileParser

from drafter.config import DrafterConfig
from specfleet.cli.main import specfleet
from specfleet.core.config import load
from support.pair import ROOT
from verifier.config import VerifierConfig

DEPLOY = ROOT / "deploy"
CONFIGS = {"verifier": VerifierConfig, "drafter": DrafterConfig}
OVERLAYS = ("base", "overlays/in-cluster", "overlays/edge")
COMPOSE = DEPLOY / "compose" / "compose.yaml"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def command_of(arguments: list[str]) -> tuple[str, click.Context]:
    """Parsed by the real command line, values of daemons checked by their configuration. Raises what a user would be told."""
    name, *rest = arguments
    group = click.Context(specfleet, info_name="specfleet")
    command = specfleet.get_command(group, name)
    assert command is not None, f"no command {name!r} in {arguments}"
    context = command.make_context(
        name, [one for one in rest if one != "--help"], parent=group, resilient_parsing="--help" in rest
    )
    if name in CONFIGS and "--help" not in rest:
        flags = {key: value for key, value in context.params.items() if value not in (None, ()) and key != "config"}
        file = context.params.get("config")
        load(
            CONFIGS[name],
            section=name,
            file=DEPLOY / "systemd" / Path(file).name if file else None,
            env={},
            flags=flags,
        )
    return name, context


def filled(text: str) -> str:
    """With the defaults of a shell's or compose's variables."""
    return re.sub(r"\$\{(\w+)(?::[-?]([^}]*))?\}", lambda found: found[2] or f"/{found[1].lower()}", text)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command line of ours that deploy/ holds, without the program: where it stands, its arguments."""
    for name, document in (
        (f"kubernetes {path.stem}", one) for path in _kubernetes_files() for one in yaml.safe_load_all(path.read_text())
    ):
        for container in containers(document):
            yield f"{name}: {container['name']}", container["args"]
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if "exec" in container[probe]:
                    yield f"{name}: {container['name']} {probe}", container[probe]["exec"]["command"][1:]
    for name, service in compose()["services"].items():
        if service["image"].startswith("specfleet/"):
            for where, arguments in _compose_commands(service):
                yield f"compose {name}{where}", [filled(one) for one in arguments]
    for unit in UNITS:
        program, *arguments = shlex.split(filled(directives(unit)["Service", "ExecStart"][0]))
        assert program == "/opt/specfleet/bin/specfleet"
        yield unit.name, arguments
    for instruction in dockerfile():
        value = instruction["value"]
        if instruction["instruction"] == "CMD" and json.loads(value) != ["--help"]:
            yield f"Dockerfile line {instruction['startline'] + 1}", json.loads(value)
        elif instruction["instruction"] == "HEALTHCHECK" and value != "NONE":
            yield f"Dockerfile line {instruction['startline'] + 1}", json.loads(value.partition("CMD")[2])[1:]


def _compose_commands(service: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    if service.get("entrypoint"):
        script = service["command"][0]
        for found in re.finditer(r"\bspecfleet ([^>|&\n]+)", script):
            yield " script", shlex.split(found[1])
    else:
        yield "", service["command"]
    if "healthcheck" in service:
        kind, program, *arguments = service["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "specfleet")
        yield " healthcheck", arguments


def compose() -> Any:
    return yaml.safe_load(COMPOSE.read_text())


def dockerfile() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = DockerfileParser(str(DOCKERFILE), cache_content=True).structure
    return found


def copied() -> list[str]:
    """What the Dockerfile takes from the repository."""
    copies = [one["value"] for one in dockerfile() if one["instruction"] == "COPY" and "--from" not in one["value"]]
    return [name for copy in copies for name in copy.split()[:-1]]


def kubernetes(overlay: str) -> list[dict[str, Any]]:
    """Documents as `kubectl kustomize` makes them; skips where there is none."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on PATH")
    program = ["kubectl", "kustomize", str(DEPLOY / "kubernetes" / overlay)]
    found = subprocess.run(program, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return list(yaml.safe_load_all(found.stdout))


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    pod = document.get("spec", {}).get("template", {}).get("spec", {})
    found: list[dict[str, Any]] = pod.get("containers", [])
    return found


def directives(unit: Path) -> dict[tuple[str, str], list[str]]:
    """(Section, key) -> its values in order: keys may come again, which configparser does not take."""
    found: dict[tuple[str, str], list[str]] = {}
    section = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            found.setdefault((section, key), []).append(value)
    return found


def _kubernetes_files() -> list[Path]:
    folder = DEPLOY / "kubernetes"
    return sorted(
        path for path in folder.rglob("*.yaml") if path.name not in ("kustomization.yaml", "rules.yaml", "adapter.yaml")
    )
