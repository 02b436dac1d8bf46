"""Coverage-led fuzzing of every message from somebody else: bytes in, a value or a typed error out.

    make fuzz                                         # a minute for each message
    python tests/fuzz/fuzz_wire.py VerifyRequest -max_total_time=3600 CORPUS_FOLDER

Ends with the crashing input in a file when anything but SpecfleetError or DecodeError comes out.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
from pathlib import Path

import atheris
from google.protobuf.message import DecodeError

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

with atheris.instrument_imports(include=["specfleet"]):
    from specfleet.core.errors import SpecfleetError
    from support.fuzzing import CODECS
    from support.hostile import random_message


def main() -> None:
    kinds = {kind.DESCRIPTOR.name: kind for kind in CODECS}
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in kinds:
        sys.exit(f"which message? one of {', '.join(kinds)}")
    kind = kinds[name]

    def one(raw: bytes) -> None:
        with contextlib.suppress(SpecfleetError, DecodeError):
            CODECS[kind](kind.FromString(raw))

    with tempfile.TemporaryDirectory() as seeds:
        # Mutations of messages get further than bytes from nowhere.
        for number in range(500):
            message = random_message(kind, random.Random(number))
            (Path(seeds) / str(number)).write_bytes(message.SerializeToString())
        atheris.Setup([*sys.argv, seeds], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
