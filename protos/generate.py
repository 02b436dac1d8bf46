"""Generate `specfleet/v1` from `protos/specfleet/v1`, or check that it is up to date.

    python protos/generate.py           # write
    python protos/generate.py --check   # exit 1 and name the files that differ

grpcio-tools is pinned in pyproject.toml, so that the same sources give the same bytes everywhere.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "protos"
STUBS = ROOT / "specfleet" / "v1"


def generate(out: Path) -> None:
    """Write stubs for every .proto file under `out`/specfleet/v1."""
    files = sorted(str(path) for path in SOURCES.rglob("*.proto"))
    google = resources.files("grpc_tools") / "_proto"
    arguments = [
        "protoc",
        f"-I{SOURCES}",
        f"-I{google}",
        f"--python_out={out}",
        f"--pyi_out={out}",
        f"--grpc_python_out={out}",
    ]
    if protoc.main([*arguments, *files]) != 0:
        raise SystemExit("protoc failed; its message stands above")
    (out / "specfleet" / "v1" / "__init__.py").write_text(
        '"""Generated from protos/ by `make protos`. Do not edit."""\n'
    )


def difference(fresh: Path) -> list[str]:
    """Names of stub files that are missing, left over, or differ."""
    new = {path.name: path.read_bytes() for path in fresh.iterdir() if path.is_file()}
    old = {path.name: path.read_bytes() for path in STUBS.iterdir() if path.is_file()} if STUBS.exists() else {}
    return sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = Path(folder) / "specfleet" / "v1"
        stale = difference(fresh)
        if "--check" in sys.argv[1:]:
            for name in stale:
                print(f"specfleet/v1/{name} is not what protos/ generates; run `make protos`")
            return 1 if stale else 0
        for name in stale:
            source, target = fresh / name, STUBS / name
            target.write_bytes(source.read_bytes()) if source.exists() else target.unlink()
            print(f"wrote {target.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
