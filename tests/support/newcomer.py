"""Documentation's commands as a newcomer pastes them: one by one, in a shell, but for names and ports that are not here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from support.pair import ROOT

_TIMEOUT_SECONDS = 200


def blocks(file: Path, heading: str = "") -> list[str]:
    """Commands of the shell blocks behind `heading`, up to the next one of its rank, in order; a line that goes on is one."""
    text = file.read_text()
    if heading:
        rank = heading.partition(" ")[0]
        text = text.partition(f"\n{heading}\n")[2]
        assert text, f"{file.name} has no heading {heading}"
        text = re.split(rf"^{rank} ", text, maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for kind, block in found if not kind for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def python_blocks(file: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", file.read_text(), flags=re.DOTALL | re.MULTILINE)


class Shell:
    """Runs lines in a folder that looks like the checkout's root to them. `here` replaces what only others have."""

    def __init__(self, folder: Path, here: Mapping[str, str]) -> None:
        self.folder = folder
        self.here = dict(here)
        (folder / "models").symlink_to(ROOT / "models")
        program = folder / "bin" / "specfleet"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m specfleet.cli.main "$@"\n')
        program.chmod(0o755)

    def local(self, line: str) -> str:
        """The line without its comment, for this machine."""
        found = re.sub(r"\s+#( .*)?$", "", line)
        for there, here in self.here.items():
            found = found.replace(there, here)
        return found

    def run(self, line: str, stdin: str = "", more: str = "") -> str:
        """What it prints; `more` is put behind it. Fails with what it says if it fails."""
        command = f"{self.local(line)} {more}".strip()
        done = subprocess.run(
            ["bash", "-c", command],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self._environment(),
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout

    def python(self, code: str) -> str:
        """What the code prints."""
        for there, here in self.here.items():
            code = code.replace(there, here)
        (self.folder / "example.py").write_text(code)
        return self.run(f"{sys.executable} example.py")

    def _environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SPECFLEET_")}
        path = f"{self.folder / 'bin'}:{clean['PATH']}"
        return {**clean, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
