"""Real daemons on free ports, through the packaged commands: start, wait for `ready`, stop, look at what they said."""

from __future__ import annotations

import os
import re
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from specfleet.cli.processes import DaemonProcess
from support.pair import DRAFT, TARGET

READY_SECONDS = 90.0
ANY_PORT = "127.0.0.1:0"


class Daemon(DaemonProcess):
    """One process of ours, started without this test's own settings."""

    def __init__(self, *arguments: str, prefix: Sequence[str] = ()) -> None:
        env = {key: value for key, value in os.environ.items() if key[:10] != "SPECFLEET_"}
        super().__init__(*arguments, env=env, prefix=prefix)

    @property
    def rss_bytes(self) -> int:
        """Resident memory now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def metric(self, name: str, **labels: str) -> float:
        """The value of one series, or the sum of those that have these labels."""
        with urllib.request.urlopen(f"http://{self.said('metrics')}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        rows = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE)
        assert rows, f"{name} is not exported"
        return sum(float(value) for found, value in rows if all(label in found for label in wanted))


def start_verifier(*arguments: str, model: str | Path = TARGET) -> Daemon:
    return Daemon("verifier", "--model", str(model), "--listen", ANY_PORT, "--metrics", ANY_PORT, *arguments)


def start_drafter(verifier: Daemon, *arguments: str, model: str | Path = DRAFT, by_way_of: str = "") -> Daemon:
    """`by_way_of`: the address under which it finds the verifier, where that is not the verifier's own."""
    way = by_way_of or verifier.address
    where = ("--verifier", way, "--listen", ANY_PORT, "--http", ANY_PORT, "--metrics", ANY_PORT)
    return Daemon("drafter", "--model", str(model), *where, *arguments)


@contextmanager
def running(daemon: Daemon) -> Iterator[Daemon]:
    """A daemon that is ready, and stops with exit code 0 in the end."""
    try:
        daemon.wait_ready(READY_SECONDS)
        yield daemon
        code = daemon.stop()
        assert code == 0, f"exit code {code}:\n{daemon.output}"
        assert "Traceback" not in daemon.output, daemon.output
    finally:
        daemon.stop(5)


@contextmanager
def fleet(
    *verifier_arguments: str, drafters: Sequence[str | Path] = (DRAFT, "ngram"), drafter_arguments: Sequence[str] = ()
) -> Iterator[tuple[Daemon, ...]]:
    """A verifier and drafters, all ready."""
    with ExitStack() as stack:
        verifier = stack.enter_context(running(start_verifier(*verifier_arguments)))
        started = [start_drafter(verifier, *drafter_arguments, model=model) for model in drafters]
        yield (verifier, *(stack.enter_context(running(drafter)) for drafter in started))


def wait_until_empty(verifier: Daemon, seconds: float = 5.0) -> None:
    """No session, no used page, within `seconds`; fails with the counts otherwise."""
    end = time.monotonic() + seconds
    while True:
        sessions = verifier.metric("specfleet_verifier_sessions")
        used = verifier.metric("specfleet_verifier_kv_pages", state="used")
        if sessions == used == 0:
            return
        assert time.monotonic() < end, f"{sessions:g} sessions and {used:g} pages still in use"
        time.sleep(0.05)
