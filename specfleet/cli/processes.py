"""Daemons as child processes: start, wait for their `ready` line, read addresses from it, stop."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from specfleet.core.errors import ConfigurationError


class DaemonProcess:
    """`specfleet ARGUMENTS…` as a process of its own; what it says is kept in `lines`. `prefix`: a command that runs it."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> None:
        self.arguments = arguments
        self.lines: list[str] = []
        self._said_enough = threading.Event()
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "specfleet.cli.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def said(self, key: str) -> str:
        """The value of `key=…` in the ready line: grpc, metrics, model, …"""
        found = re.search(rf"^ready .*\b{key}=(\S+)", self.output, re.MULTILINE)
        return found[1] if found else ""

    @property
    def address(self) -> str:
        return self.said("grpc")

    def wait_ready(self, seconds: float) -> None:
        """Raises ConfigurationError with the daemon's own last words if it ends or takes longer."""
        ready = self._said_enough.wait(seconds)
        if ready and self.address:
            return
        last = self.lines[-1] if self.lines else "it said nothing"
        self.stop()
        problem = "ended" if ready else f"was not ready within {seconds:g} s"
        raise ConfigurationError(f"{self.arguments[0]} {problem}: {last}")

    def stop(self, seconds: float = 15.0) -> int:
        """SIGTERM, and SIGKILL after `seconds`; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(seconds)
        return self.process.returncode

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line.rstrip("\n"))
                if line.startswith("ready "):
                    self._said_enough.set()
        self._said_enough.set()
