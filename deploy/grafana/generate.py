"""Write the dashboards that Grafana is provisioned with, or check that they are what this code makes.

python -m deploy.grafana.generate           # write deploy/grafana/dashboards/*.json
python -m deploy.grafana.generate --check   # exit 1 and name the files that differ
"""

from __future__ import annotations

import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana import capacity, fleet, service, speculation

FOLDER = Path(__file__).resolve().parent / "dashboards"
BOARDS = {"fleet": fleet, "speculation": speculation, "service": service, "capacity": capacity}


def generate() -> dict[str, str]:
    """File name -> JSON."""
    encoder = JSONEncoder(sort_keys=True, indent=1)
    return {
        f"{name}.json": encoder.encode(_numbered(module.dashboard().build())) + "\n" for name, module in BOARDS.items()
    }


def _numbered(dashboard: Dashboard) -> Dashboard:
    """Links to a panel need its number."""
    for number, panel in enumerate(dashboard.panels or [], 1):
        panel.id_val = number
    return dashboard


def difference(fresh: dict[str, str]) -> list[str]:
    """Names of files that are missing, left over, or differ."""
    there = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    return sorted(name for name in fresh.keys() | there.keys() if fresh.get(name) != there.get(name))


def main() -> int:
    fresh = generate()
    stale = difference(fresh)
    if "--check" in sys.argv[1:]:
        for name in stale:
            sys.stdout.write(f"deploy/grafana/dashboards/{name} is not what the code makes; run `make dashboards`\n")
        return 1 if stale else 0
    for name in stale:
        path = FOLDER / name
        path.write_text(fresh[name]) if name in fresh else path.unlink()
        sys.stdout.write(f"wrote deploy/grafana/dashboards/{name}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
