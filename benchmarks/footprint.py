"""Memory of idle daemons, and what importing the SDK costs.

    python benchmarks/footprint.py [--models FOLDER]

Resident memory is read from /proc a second after the ready line and again after 16 streams. The import is timed in fresh
interpreters, with and without it, in turns; the difference of medians counts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import MODELS, PROMPTS, Report, interleaved, medians, timed
from specfleet import AsyncClient
from specfleet.cli.processes import DaemonProcess


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=MODELS)
    models: Path = parser.parse_args().models
    report = Report("footprint")
    addresses = ("--listen", "127.0.0.1:0", "--http", "", "--metrics", "127.0.0.1:0")
    with DaemonProcess("verifier", "--model", str(models / "tiny-target"), *addresses) as verifier:
        verifier.wait_ready(120)
        with DaemonProcess("drafter", "--model", "ngram", "--verifier", verifier.address, *addresses) as ngram:
            ngram.wait_ready(60)
            time.sleep(1)
            rows = [["MB resident", "idle", "after 16 streams"]]
            idle = [_rss(verifier), _rss(ngram)]
            asyncio.run(_load(ngram.address))
            for name, daemon, before in zip(("verifier", "ngram drafter"), (verifier, ngram), idle, strict=True):
                rows.append([name, f"{before / 1e6:.0f}", f"{_rss(daemon) / 1e6:.0f}"])
            report.table("Memory of the daemons.", rows)
            report.bar("verifier with the tiny pair, GB resident", _rss(verifier) / 1e9, 1.2, at_most=True)
            report.bar("idle n-gram drafter, MB resident", idle[1] / 1e6, 150, at_most=True)
            mapped = Path(f"/proc/{ngram.process.pid}/maps").read_text()
            report.bar("torch in the n-gram drafter (1 = yes)", float("libtorch" in mapped), 0, at_most=True)
            report.figures.update(verifier_bytes=_rss(verifier), ngram_bytes=_rss(ngram))
    found = medians(interleaved({"bare": _python("pass"), "sdk": _python("import specfleet")}, 15))
    took = (found["sdk"] - found["bare"]) * 1e3
    print(f"import specfleet: {took:.0f} ms over a bare interpreter's {found['bare'] * 1e3:.0f} ms")
    report.bar("import specfleet, ms", took, 150, at_most=True, ratio=False)
    return report.finish()


def _python(code: str) -> Callable[[], float]:
    return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True))


def _rss(daemon: DaemonProcess) -> int:
    return int(Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _load(server: str) -> None:
    async with AsyncClient(server, timeout=120) as client:
        await asyncio.gather(*(client.generate(prompt, max_tokens=32) for prompt in PROMPTS * 2))


if __name__ == "__main__":
    sys.exit(main())
