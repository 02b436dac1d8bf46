"""deploy/ against schemas, against our own command line, and against itself. No container is built here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from specfleet.core.errors import ConfigurationError
from support.manifests import (
    COMPOSE,
    CONFIGS,
    DEPLOY,
    DOCKERFILE,
    OVERLAYS,
    UNITS,
    command_of,
    commands,
    compose,
    containers,
    copied,
    directives,
    dockerfile,
    kubernetes,
)
from support.pair import ROOT

KUBERNETES = "1.32"
OPERATORS = "monitoring.coreos.com/v1"
"""Custom resources, of which Kubernetes' own schemas know nothing."""
COMMANDS = list(commands())
TELL_SECONDS = 2.0
"""What a drain takes at most beyond --drain-seconds."""
MOST_EXPOSED = 25
"""systemd-analyze's exposure times ten, where less is better and a unit without hardening has 96."""


def tool(name: str) -> str:
    """Of this environment or of the machine; skips where there is none."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin")
    return found or pytest.skip(f"{name} is not installed")


def checked(*program: str) -> None:
    found = subprocess.run(program, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def only(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in documents if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


# --- our own command line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "arguments"), COMMANDS, ids=[where for where, _ in COMMANDS])
def test_commands_are_understood(where: str, arguments: list[str]) -> None:
    """Every command line of ours, flag by flag and value by value."""
    command_of(arguments)


def test_all_kinds_of_files_have_commands() -> None:
    """Else the test above would be satisfied by nothing."""
    places = " ".join(where for where, _ in COMMANDS)
    for one in (
        "kubernetes verifier",
        "kubernetes drafter",
        "livenessProbe",
        "compose verifier healthcheck",
        "compose trust script",
        "specfleet-drafter.service",
        "specfleet-verifier.service",
        "Dockerfile",
    ):
        assert one in places, one
    assert {"verifier", "drafter", "health", "certs", "token", "status"} == {arguments[0] for _, arguments in COMMANDS}


def test_a_misspelt_flag_or_value_is_found() -> None:
    """Of a daemon, in a flag, a value, or a rule over several; of another command."""
    verifier = next(arguments for _, arguments in COMMANDS if arguments[0] == "verifier" and len(arguments) > 4)
    for spoilt, error in (
        ([*verifier, "--kv-cache-token=4096"], click.UsageError),
        ([*verifier, "--device-s"], click.UsageError),
        ([*verifier, "--drain-seconds=soon"], ConfigurationError),
        ([*verifier, "--service-class=chat:tft=1"], ConfigurationError),
        ([one for one in verifier if "--tls-key" not in one], ConfigurationError),
        (["health", "--sever", "x:1"], click.UsageError),
    ):
        with pytest.raises(error):
            command_of(spoilt)


# --- schemas and linters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_accepts_what_kustomize_makes(overlay: str) -> None:
    """Strictly: an unknown key is an error."""
    documents = kubernetes(overlay)
    for document in documents:
        if document["apiVersion"] != OPERATORS:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "specfleet"
    assert {"Deployment", "PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"} <= {
        one["kind"] for one in documents
    }


def test_an_unknown_key_is_not_kubernetes() -> None:
    """The schemas are strict."""
    deployment = only(kubernetes("base"), "Deployment", "specfleet-verifier")
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


def test_compose_is_of_its_schema() -> None:
    checked(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE))


def test_the_dockerfile_is_clean() -> None:
    checked(tool("hadolint"), str(DOCKERFILE))


@pytest.mark.parametrize("unit", UNITS, ids=[unit.name for unit in UNITS])
def test_systemd_accepts_units(unit: Path, tmp_path: Path) -> None:
    """With a program that is there in place of ours; and they are hardened."""
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/specfleet/bin/specfleet", sys.executable))
    analyze = tool("systemd-analyze")
    found = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (0, "") == (found.returncode, found.stdout + found.stderr)
    checked(analyze, "security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(copy))


# --- against itself --------------------------------------------------------------------------------------------------


def drain_seconds(arguments: list[str]) -> float:
    """What a daemon waits for at most after SIGTERM."""
    _, context = command_of(arguments)
    said = context.params.get("drain_seconds")
    if said is None and context.params.get("config"):
        import tomllib

        table = tomllib.loads((DEPLOY / "systemd" / Path(context.params["config"]).name).read_text())
        said = table[arguments[0]]["drain_seconds"]
    assert said is not None, arguments
    return float(said) + TELL_SECONDS


@pytest.mark.parametrize(("kind", "name"), [("Deployment", "specfleet-verifier"), ("DaemonSet", "specfleet-drafter")])
def test_pods_have_time_to_drain_and_no_rights(kind: str, name: str) -> None:
    """The grace period holds preStop and --drain-seconds; nothing runs as root or writes where it need not; ports are those
    that the daemon listens on; files named in flags are mounted."""
    pod = only(kubernetes("overlays/in-cluster"), kind, name)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + drain_seconds(container["args"])
    assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"] and not pod["enableServiceLinks"]
    listening = {port["name"]: port["containerPort"] for port in container["ports"]}
    flags = dict(one[2:].split("=", 1) for one in container["args"] if "=" in one)
    said = {"grpc": flags["listen"], **{one: flags[one] for one in ("http", "metrics") if one in flags}}
    assert {port: f"0.0.0.0:{number}" for port, number in listening.items()} == said
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    for value in flags.values():
        if value.startswith("/"):
            assert any(value == mount or value.startswith(f"{mount}/") for mount in mounts), value
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_what_selects_pods_selects_ours() -> None:
    """Services, budget, policies, monitors and the autoscaler mean labels, ports and names that exist."""
    documents = kubernetes("overlays/in-cluster")
    for name, kind in (("specfleet-verifier", "Deployment"), ("specfleet-drafter", "DaemonSet")):
        template = only(documents, kind, name)["spec"]["template"]
        labels, ports = (
            template["metadata"]["labels"],
            {port["name"] for port in template["spec"]["containers"][0]["ports"]},
        )
        service = only(documents, "Service", name)
        assert service["spec"]["selector"].items() <= labels.items()
        assert ports == {port["targetPort"] for port in service["spec"]["ports"]}
        assert only(documents, "NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        monitor = only(documents, "ServiceMonitor", name)["spec"]
        assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        (endpoint,) = monitor["endpoints"]
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        assert [{"targetLabel": "job", "replacement": name}] == endpoint["relabelings"]
    labels = only(documents, "Deployment", "specfleet-verifier")["spec"]["template"]["metadata"]["labels"]
    budget = only(documents, "PodDisruptionBudget", "specfleet-verifier")["spec"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    scaler = only(documents, "HorizontalPodAutoscaler", "specfleet-verifier")["spec"]
    assert "specfleet-verifier" == scaler["scaleTargetRef"]["name"] and scaler["minReplicas"] > budget["maxUnavailable"]
    assert "replicas" not in only(documents, "Deployment", "specfleet-verifier")["spec"]
    adapter = yaml.safe_load((DEPLOY / "kubernetes/components/monitoring/adapter.yaml").read_text())["rules"]["custom"]
    assert {one["name"]["as"] for one in adapter} == {one["pods"]["metric"]["name"] for one in scaler["metrics"]}


def test_drafters_outside_reach_verifiers() -> None:
    """In the overlay for them, whoever has a token may come from anywhere; the metrics stay within."""
    documents = kubernetes("overlays/edge")
    entrance = only(documents, "Service", "specfleet-verifier-edge")["spec"]
    assert "LoadBalancer" == entrance["type"] and [7600] == [port["port"] for port in entrance["ports"]]
    rules = only(documents, "NetworkPolicy", "specfleet-verifier")["spec"]["ingress"]
    assert [[7600]] == [[port["port"] for port in rule["ports"]] for rule in rules if "from" not in rule]


def test_images_are_pinned_have_no_rights_and_say_how_they_are() -> None:
    """Every stage from another image has a version; the last user is not root, and the one that pods run as; every target
    has a health check, and those that manifests name are targets."""
    instructions = dockerfile()
    arguments = dict(one["value"].split("=", 1) for one in instructions if one["instruction"] == "ARG")
    targets: dict[str, set[str]] = {}
    parents: dict[str, str] = {}
    stage = ""
    for one in instructions:
        if one["instruction"] == "FROM":
            image, _, stage = one["value"].partition(" AS ")
            parents[stage], targets[stage] = image, set()
        elif one["instruction"] not in ("ARG", "COMMENT"):
            targets[stage].add(one["instruction"])
    for image in parents.values():
        name = image.replace("${PYTHON}", arguments["PYTHON"])
        assert name in parents or re.search(r":\d+\.\d+\.\d+", name), image
    finals = {stage for stage, parent in parents.items() if parent == "base"}
    assert {"client", "drafter-cpu", "drafter-cuda", "verifier-cuda"} == finals
    assert all({"HEALTHCHECK", "CMD"} <= targets[stage] and "USER" not in targets[stage] for stage in finals)
    (user,) = [one["value"] for one in instructions if one["instruction"] == "USER"]
    assert {int(user.split(":")[0])} == {
        one["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
        for one in kubernetes("overlays/in-cluster")
        if containers(one)
    }
    for service in compose()["services"].values():
        image, _, tag = service["image"].partition(":")
        if "build" in service:
            assert service["build"]["target"] in finals
        if not image.startswith("specfleet/"):
            assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), service["image"]


def test_the_build_context_holds_what_is_copied() -> None:
    """.dockerignore keeps everything out but that."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert sorted(copied()) == sorted(line[1:] for line in lines if line.startswith("!"))


def test_compose_gives_daemons_time_and_prometheus_its_names() -> None:
    """Grace periods hold --drain-seconds; targets of the shipped configuration are services, on their metrics ports."""
    services = compose()["services"]
    for name in CONFIGS:
        assert float(services[name]["stop_grace_period"].removesuffix("s")) > drain_seconds(
            _plain(services[name]["command"])
        )
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    targets = [target for job in config["scrape_configs"] for one in job["static_configs"] for target in one["targets"]]
    for target in targets:
        name, _, port = target.partition(":")
        assert f"--metrics=0.0.0.0:{port}" in services[name]["command"]
    mounted = [volume.split(":")[0] for name in ("prometheus", "grafana") for volume in services[name]["volumes"]]
    for path in (one for one in mounted if one.startswith(".")):
        assert (COMPOSE.parent / path).is_dir(), path


def test_grafana_is_provisioned_with_what_is_mounted() -> None:
    """The provider reads the folder that holds the dashboards, and the source is the service Prometheus."""
    grafana = compose()["services"]["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    folder = DEPLOY / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards" / "specfleet.yaml").read_text())["providers"]
    assert mounts["../grafana/dashboards"] == provider["options"]["path"]
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert ("prometheus", "http://prometheus:9090") == (source["type"], source["url"])
    assert "127.0.0.1:9090:9090" in compose()["services"]["prometheus"]["ports"]


def _plain(arguments: list[str]) -> list[str]:
    from support.manifests import filled

    return [filled(one) for one in arguments]


@pytest.mark.parametrize("unit", UNITS, ids=[unit.name for unit in UNITS])
def test_units_have_time_to_drain(unit: Path) -> None:
    """TimeoutStopSec holds drain_seconds."""
    arguments = next(arguments for where, arguments in COMMANDS if where == unit.name)
    assert float(directives(unit)["Service", "TimeoutStopSec"][0]) > drain_seconds(arguments)
