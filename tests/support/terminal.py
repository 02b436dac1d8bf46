"""Commands in a terminal of their own: what a person would see, and the keys that a person would press."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

from support.pair import ROOT

PATIENCE_SECONDS = 60.0
_STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """One process with a terminal for its input, output and errors."""

    def __init__(self, *command: str, columns: int = 120, **env: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SPECFLEET_", "COLUMNS"))}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**clean, "PYTHONPATH": str(ROOT), "TERM": "xterm", **env},
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it
        )
        os.close(slave)
        self.seen = ""
        """All that was written, escape sequences included."""

    @property
    def text(self) -> str:
        """The same without escape sequences."""
        return _STYLE.sub("", self.seen)

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def until(self, *words: str) -> str:
        """Read until all of them have been written since the last call; what was."""
        begin, end = len(self.seen), time.monotonic() + PATIENCE_SECONDS
        while not all(word in _STYLE.sub("", self.seen[begin:]) for word in words):
            assert time.monotonic() < end and self._read(0.2), self.seen[begin:]
        return self.seen[begin:]

    def wait(self) -> int:
        """Its exit code; reads the rest."""
        end = time.monotonic() + PATIENCE_SECONDS
        while self._read(0.1):
            assert time.monotonic() < end, self.seen
        return self.process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def _read(self, seconds: float) -> bool:
        """False once nobody can write any more."""
        if select.select([self._master], [], [], seconds)[0]:
            try:
                found = os.read(self._master, 65536)
            except OSError:  # how Linux says that the other side is closed
                return False
            self.seen += found.decode(errors="replace")
            return bool(found)
        return True


@contextmanager
def terminal(*arguments: str, columns: int = 120, **env: str) -> Iterator[Terminal]:
    """`specfleet ARGUMENTS` in a terminal. Nothing it ever says is a traceback."""
    found = Terminal(sys.executable, "-m", "specfleet.cli.main", *arguments, columns=columns, **env)
    try:
        yield found
        assert "Traceback" not in found.seen, found.seen
    finally:
        found.close()
