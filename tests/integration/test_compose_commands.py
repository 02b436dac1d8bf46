"""compose.yaml's own commands as processes, since there are no containers here: certificates, token, TLS, health, a text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from specfleet import AuthenticationFailed, Client, Tls
from support.daemons import Daemon, running
from support.manifests import compose, filled
from support.pair import DRAFT, TARGET

PROGRAMS = Path(sys.executable).parent
SERVICES: dict[str, Any] = compose()["services"]


def here(arguments: list[str], folder: Path, **changed: str) -> list[str]:
    """Paths of the containers in `folder`, any port of this machine, the tiny pair on the CPU; `changed` flags."""
    free = dict.fromkeys(("listen", "http", "metrics"), "127.0.0.1:0")
    replaced = {**free, "device": "cpu", **changed}
    found = []
    for argument in map(filled, arguments):
        name, equals, value = argument.partition("=")
        value = replaced.get(name.removeprefix("--"), value)
        found.append(
            (name + equals + value).replace("/etc/specfleet", f"{folder}/etc").replace("/var/lib", f"{folder}")
        )
    return found


def trust(folder: Path) -> None:
    """Run the service that makes certificates and the token."""
    (folder / "etc").mkdir(exist_ok=True)
    shell, script = SERVICES["trust"]["entrypoint"], SERVICES["trust"]["command"][0]
    path = f"{PROGRAMS}:{os.environ['PATH']}"
    program = [*shell, script.replace("/etc/specfleet", f"{folder}/etc")]
    found = subprocess.run(program, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def healthy(service: str, folder: Path, daemon: Daemon) -> bool:
    """What its health check says."""
    _, *program = here(SERVICES[service]["healthcheck"]["test"], folder)
    program[program.index("--server") + 1] = daemon.address.replace("127.0.0.1", "localhost")
    return subprocess.run([str(PROGRAMS / program[0]), *program[1:]], capture_output=True, check=False).returncode == 0


def test_composes_commands_are_a_fleet(tmp_path: Path) -> None:
    """A text comes through the drafter, who reaches the verifier by TLS and token; nobody does without. Starting it again
    keeps the token and the authority."""
    trust(tmp_path)
    token = (tmp_path / "etc" / "drafter.token").read_text()
    authority = (tmp_path / "etc" / "ca.pem").read_bytes()
    trust(tmp_path)
    assert (token, authority) == (
        (tmp_path / "etc" / "drafter.token").read_text(),
        (tmp_path / "etc" / "ca.pem").read_bytes(),
    )

    (tmp_path / "specfleet").mkdir()
    with running(Daemon(*here(SERVICES["verifier"]["command"], tmp_path, model=str(TARGET)))) as verifier:
        address = verifier.address.replace("127.0.0.1", "localhost")
        assert healthy("verifier", tmp_path, verifier)
        command = here(SERVICES["drafter"]["command"], tmp_path, model=str(DRAFT), verifier=address)
        with running(Daemon(*command)) as drafter, Client(drafter.address, timeout=60) as client:
            reply = client.generate("Once upon a time", max_tokens=24, temperature=0.0, service_class="chat")
        tls = Tls.from_files(tmp_path / "etc" / "ca.pem")
        with Client(address, timeout=60, tls=tls, token=token.strip()) as direct:
            assert reply.token_ids == direct.generate("Once upon a time", max_tokens=24, temperature=0.0).token_ids
        with Client(address, timeout=60, tls=tls) as nobody, pytest.raises(AuthenticationFailed):
            nobody.generate("Once upon a time", max_tokens=4)
    assert not healthy("verifier", tmp_path, verifier)
    assert list((tmp_path / "specfleet").iterdir())  # what the drafter has learnt
