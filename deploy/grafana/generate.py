"""Write what is made, or check that it is what this code makes: Grafana's dashboards, and the rules of deploy/prometheus as
prometheus-operator wants them.

    python -m deploy.grafana.generate           # write
    python -m deploy.grafana.generate --check   # exit 1 and name the files that differ
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana import capacity, fleet, service, speculation

DEPLOY = Path(__file__).resolve().parents[1]
BOARDS = {"fleet": fleet, "speculation": speculation, "service": service, "capacity": capacity}
OPERATOR_RULES = DEPLOY / "kubernetes" / "components" / "monitoring" / "rules.yaml"
RULES = ("recording", "alerts")


def generate() -> dict[Path, str]:
    """File -> content."""
    encoder = JSONEncoder(sort_keys=True, indent=1)
    boards = {
        DEPLOY / "grafana" / "dashboards" / f"{name}.json": encoder.encode(_numbered(module.dashboard().build())) + "\n"
        for name, module in BOARDS.items()
    }
    return {**boards, OPERATOR_RULES: _operator_rules()}


def difference(fresh: dict[Path, str]) -> list[Path]:
    """Files that are missing, left over, or differ."""
    there = {path for path in (*(DEPLOY / "grafana" / "dashboards").glob("*.json"), OPERATOR_RULES) if path.exists()}
    return sorted(path for path in fresh.keys() | there if path not in there or fresh.get(path) != path.read_text())


def _numbered(dashboard: Dashboard) -> Dashboard:
    """Links to a panel need its number."""
    for number, panel in enumerate(dashboard.panels or [], 1):
        panel.id_val = number
    return dashboard


def _operator_rules() -> str:
    files = [DEPLOY / "prometheus" / "rules" / f"{name}.yml" for name in RULES]
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "specfleet"},
        "spec": {"groups": [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]},
    }
    return "# Made from deploy/prometheus/rules by `make dashboards`. Do not edit.\n" + yaml.safe_dump(
        document, sort_keys=False, width=120
    )


def main() -> int:
    fresh = generate()
    stale = difference(fresh)
    if "--check" in sys.argv[1:]:
        for path in stale:
            sys.stdout.write(f"{path.relative_to(DEPLOY.parent)} is not what the code makes; run `make dashboards`\n")
        return 1 if stale else 0
    for path in stale:
        path.write_text(fresh[path]) if path in fresh else path.unlink()
        sys.stdout.write(f"wrote {path.relative_to(DEPLOY.parent)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
