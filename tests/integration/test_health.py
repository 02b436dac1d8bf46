"""`specfleet health` against real daemons: what container probes rely on."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from support.daemons import running, start_verifier
from support.trust import Certificates, Tokens


def health(*arguments: str) -> tuple[int, str]:
    """Exit code and output of the packaged command."""
    command = [str(Path(sys.executable).parent / "specfleet"), "health", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return found.returncode, found.stdout + found.stderr


def test_a_ready_verifier_is_ready_without_a_token(tmp_path: Path) -> None:
    """Over TLS, by a caller who has no token; alive is less than ready, and one of two is not all."""
    certificates = Certificates(tmp_path / "certs")
    cert, key = certificates.server()
    tokens = Tokens(tmp_path / "tokens", "edge")
    trust = ("--tls-cert", str(cert), "--tls-key", str(key), "--tokens", str(tokens.path))
    with socket.socket() as free, running(start_verifier(*trust)) as verifier:
        free.bind(("127.0.0.1", 0))  # bound, and not listening
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
        asked = ("--server", verifier.address, "--tls-ca", str(certificates.ca))
        assert (0, f"{verifier.address}: ready\n") == health(*asked)
        assert 0 == health(*asked, "--live")[0]
        code, said = health(*asked, "--server", nobody, "--timeout", "2")
        assert 3 == code and f"{verifier.address}: ready\n{nobody}: not reached: " in said
        assert 3 == health("--server", verifier.address, "--timeout", "2")[0]  # no TLS, no answer
    assert 3 == health(*asked, "--timeout", "2")[0]
