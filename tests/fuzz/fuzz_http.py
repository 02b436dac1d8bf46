"""Coverage-led fuzzing of HTTP bodies: bytes in, a request or a typed error out (see fuzz_wire.py).

python tests/fuzz/fuzz_http.py -max_total_time=3600 CORPUS_FOLDER
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

with atheris.instrument_imports(include=["specfleet"]):
    from support.hostile_http import random_body, read


def main() -> None:
    with tempfile.TemporaryDirectory() as seeds:
        for number in range(500):
            (Path(seeds) / str(number)).write_bytes(random_body(random.Random(number))[:4096])
        atheris.Setup([*sys.argv, seeds], lambda raw: read(raw) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
