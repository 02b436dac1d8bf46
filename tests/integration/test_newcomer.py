"""README, guide, SDK and HTTP documentation, pasted one by one: lines run, on real daemons, and say what they promise."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from specfleet import Client
from support.daemons import ANY_PORT, Daemon, running
from support.newcomer import Shell, blocks, python_blocks
from support.pair import ROOT

README = ROOT / "README.md"
GUIDE, SDK, HTTP = (ROOT / "docs" / name for name in ("guide.md", "sdk.md", "http.md"))
ELSEWHERE = {
    "make demo": "has a test of its own (test_daemons.py)",
    "make test": "is this",
    "specfleet simulate my-fleet.yaml": "is a file of the reader's",
    "specfleet simulate dsd-600": "takes minutes; tests/simulation plays it",
}
"""What is not pasted here, and why."""
QUICKER = {
    "specfleet bench": "--max-tokens 8",
    "specfleet profile": "--seconds 1",
    "specfleet status": "--once --interval 0.5",
}
"""The same in less time."""
SAID = {
    "specfleet chat": "accepted recovered bonus target",
    "specfleet status": "goodput",
    "specfleet bench": "tokens/s",
    "specfleet profile --model models/tiny-target": "mean absolute percentage error",
    "specfleet profile --model models/tiny-draft": "best",
    "specfleet simulate tutorial": "fair-goodput",
    "specfleet certs": "ca.pem",
}
"""A word of what comes."""


def known(line: str, table: dict[str, str]) -> str:
    return next((value for begin, value in table.items() if line.startswith(begin)), "")


def daemon(shell: Shell, line: str) -> Daemon:
    """The line's daemon, on any ports but those that it switches off."""
    program, *arguments = shlex.split(shell.local(line))
    assert program == "specfleet"
    kept, flags = [], iter(arguments)
    for flag in flags:
        value = next(flags) if flag in ("--listen", "--http", "--metrics") else None
        if value is None or value == "":
            kept += [flag] if value is None else [flag, value]
    for flag in ("--listen", "--metrics", *(["--http"] if arguments[0] == "drafter" else [])):
        kept += [] if flag in kept else [flag, ANY_PORT]
    if arguments[0] == "drafter" and "--verifier" not in kept:
        kept += ["--verifier", shell.here["127.0.0.1:7600"]]  # the default
    return Daemon(*kept, prefix=("env", "-C", str(shell.folder)))


def paste(shell: Shell, line: str) -> None:
    """Any line but a daemon's."""
    words = known(line, SAID)
    stdin = "Hello\n/quit\n" if line.startswith("specfleet chat") else ""
    assert words in shell.run(line, stdin, known(line, QUICKER)), line


def is_daemon(line: str) -> bool:
    return line.startswith(("specfleet verifier", "specfleet drafter"))


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(tmp_path_factory.mktemp("newcomer"), {})


@pytest.fixture(scope="module")
def fleet(shell: Shell) -> Iterator[tuple[Daemon, Daemon]]:
    """README's first two daemons, under the ports that it says for whoever is pasted after them."""
    verifier_line, drafter_line = blocks(README, "## Run it")[:2]
    with ExitStack() as stack:
        verifier = stack.enter_context(running(daemon(shell, verifier_line)))
        shell.here["127.0.0.1:7600"] = verifier.address
        drafter = stack.enter_context(running(daemon(shell, drafter_line)))
        shell.here |= {
            "localhost:7700": drafter.address,
            "127.0.0.1:8000": drafter.said("http"),
            "specfleet generate": f"specfleet generate --server {drafter.address}",
            "specfleet chat": f"specfleet chat --server {drafter.address}",
            "specfleet bench": f"specfleet bench --server {drafter.address}",
            "specfleet status": f"specfleet status --metrics {verifier.said('metrics')}",
        }
        yield verifier, drafter


@pytest.mark.timeout(900)
def test_readme(shell: Shell, fleet: tuple[Daemon, Daemon]) -> None:
    """All of "Run it" and "Fleets that nobody has", and both languages' examples."""
    for line in blocks(README, "## Run it")[2:]:
        if "--service-class" in line:  # in place of the first verifier
            with running(daemon(shell, line)) as promising, Client(promising.address, timeout=60) as client:
                client.generate("Once upon a time", max_tokens=4, service_class="chat")
        elif "gpu-2" in line or "--slo" in line:  # two machines: test_routing.py; asked of the one above
            continue
        elif is_daemon(line):
            with running(daemon(shell, line)) as other:
                assert other.said("verifier") == fleet[0].address
        else:
            paste(shell, line)
    for line in blocks(README, "## Fleets that nobody has at hand"):
        if not known(line, ELSEWHERE):
            paste(shell, line)
    assert {known(line, ELSEWHERE) for line in blocks(README)} - {""} == set(ELSEWHERE.values())  # none is out of date
    for code in python_blocks(README):
        assert "Usage(" in shell.python(code)


def test_sdk(shell: Shell, fleet: tuple[Daemon, Daemon]) -> None:
    """Those without TLS; the others are asked of the fleet that has it."""
    shell.here |= {"edge-7:7700": fleet[1].address, "gpu-1:7600": fleet[0].address}
    for code in python_blocks(SDK)[:-1]:
        assert shell.python(code).strip()


def test_http(shell: Shell, fleet: tuple[Daemon, Daemon]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    for line in blocks(HTTP)[:2]:
        assert '"choices"' in shell.run(line), line
    for code in python_blocks(HTTP):
        assert shell.python(code).strip()


def test_two_machines(tmp_path: Path) -> None:
    """Both of them this one, the shipped pair for the hub's: certificates, token, profile, daemons and users as written."""
    here = {"Qwen/Qwen3-8B": "models/tiny-target", "Qwen/Qwen3-0.6B": "models/tiny-draft", " --device cuda": ""}
    shell = Shell(tmp_path, here | {"gpu-1": "localhost"})
    lines = [line for line in blocks(GUIDE, "## Two machines: a GPU host and a laptop") if "pip install" not in line]
    at = next(number for number, line in enumerate(lines) if line.startswith("specfleet verifier"))
    for line in lines[:at]:
        paste(shell, line)
    (tmp_path / "ca.pem").write_bytes((tmp_path / "certs" / "ca.pem").read_bytes())  # as it is carried to the laptop
    with running(daemon(shell, lines[at])) as verifier:
        shell.here = {"gpu-1:7600": f"localhost:{verifier.address.rpartition(':')[2]}", **shell.here}
        with running(daemon(shell, lines[at + 1])) as drafter:
            shell.here |= {
                "specfleet generate": f"specfleet generate --server {drafter.address}",
                "specfleet chat": f"specfleet chat --server {drafter.address}",
                "127.0.0.1:7701": drafter.said("metrics"),
            }
            for line in lines[at + 2 :]:
                paste(shell, line)
