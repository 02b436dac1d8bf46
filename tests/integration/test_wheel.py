"""The wheel in a clean environment: what `pip install specfleet` gives a user, against a live fleet.

`make wheel-check`: it needs the package index, and some half a minute."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from support.daemons import Daemon, fleet
from support.manifests import copied
from support.pair import ROOT

pytestmark = pytest.mark.wheel

PROGRAM = """
import json, sys
from specfleet import AsyncClient, Client, SamplingParams
with Client(sys.argv[1], timeout=60) as client:
    reply = client.generate("Once upon a time", SamplingParams(max_tokens=16, temperature=0.0))
    with client.stream("Once upon a time", max_tokens=16, temperature=0.0) as stream:
        text = "".join(event.text for event in stream)
    ready = [one.ready for one in client.health()]
heavy = sorted({"torch", "transformers", "numpy", "pydantic", "prometheus_client"} & set(sys.modules))
print(json.dumps({"text": reply.text, "streamed": text, "ready": ready, "heavy": heavy, "ids": list(reply.token_ids)}))
"""


def run(*program: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, program)], cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what the Dockerfile copies into its build stage, which therefore suffices."""
    folder, sources = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("sources")
    for name in copied():
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, sources / name)
    found = run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, sources)
    assert found.returncode == 0, found.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that holds the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=True)
    found = run(folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    assert found.returncode == 0, found.stderr
    return folder / "bin"


@pytest.fixture(scope="module")
def daemons() -> Iterator[tuple[Daemon, ...]]:
    """Of the checkout's own environment."""
    with fleet(drafters=("ngram",)) as found:
        yield found


def test_three_runtime_dependencies_at_most() -> None:
    """Without extras."""
    asked = [Requirement(one) for one in requires("specfleet") or ()]
    assert {"grpcio", "protobuf", "click"} == {one.name for one in asked if one.marker is None}


def test_the_wheel_holds_the_packages_and_their_types(wheel: Path) -> None:
    """What is imported, the marker for type checkers, data files, and no tests."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"specfleet/py.typed", "specfleet/v1/generation_pb2.py", "scheduler/speculation/awc.json"} <= names
    assert {"specfleet", "verifier", "drafter", "scheduler", "simulator"} == {
        name.split("/")[0] for name in names if ".dist-info" not in name
    }


def test_the_sdk_works_without_torch(clean: Path, daemons: tuple[Daemon, ...], tmp_path: Path) -> None:
    """Nothing else is installed beside the three and what they need; text through a drafter equals the verifier's own."""
    installed = {one["name"] for one in json.loads(run(clean / "pip", "list", "--format", "json").stdout)}
    assert {"specfleet", "grpcio", "protobuf", "click"} <= installed
    assert set() == installed - {
        "specfleet",
        "grpcio",
        "protobuf",
        "click",
        "typing_extensions",
        "pip",
        "setuptools",
        "wheel",
    }
    texts = set()
    for daemon in daemons:
        found = run(clean / "python", "-c", PROGRAM, daemon.address, cwd=tmp_path)
        assert found.returncode == 0, found.stderr
        said = json.loads(found.stdout)
        assert said["text"] == said["streamed"] and len(said["ids"]) == 16
        assert ([True], []) == (said["ready"], said["heavy"])
        texts.add(said["text"])
    assert 1 == len(texts)


def test_the_command_line_works_and_says_what_is_missing(
    clean: Path, daemons: tuple[Daemon, ...], tmp_path: Path
) -> None:
    """generate, health; and for what needs an extra the command that brings it."""
    server = ("--server", daemons[1].address)
    found = run(
        clean / "specfleet", "generate", "Once upon a time", *server, "--max-tokens", "8", "--json", cwd=tmp_path
    )
    assert found.returncode == 0 and 8 == len(json.loads(found.stdout.splitlines()[-1])["token_ids"]), found.stderr
    assert 0 == run(clean / "specfleet", "health", *server, cwd=tmp_path).returncode
    found = run(clean / "specfleet", "verifier", "--model", "x", cwd=tmp_path)
    assert 2 == found.returncode and "pip install 'specfleet[verifier]'" in found.stderr


@pytest.mark.timeout(900)
def test_the_scheduler_is_compiled_where_it_is_installed(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside everything else in site-packages; without mypyc it says what is missing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    for extras in ("simulator", "native"):
        found = run(programs / "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[{extras}]")
        assert found.returncode == 0, found.stderr
        if extras == "simulator":
            refused = run(programs / "specfleet", "native", cwd=tmp_path)
            assert 2 == refused.returncode and "pip install 'specfleet[native]'" in refused.stderr
    found = run(programs / "specfleet", "native", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    found = run(programs / "python", "-c", "import scheduler.scheduler as one; print(one.__file__)", cwd=tmp_path)
    assert found.stdout.startswith(str(tmp_path / "cache")), found.stderr
