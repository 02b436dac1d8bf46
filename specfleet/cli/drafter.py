"""`specfleet drafter`: the daemon beside the user."""

from __future__ import annotations

from drafter.config import DrafterConfig
from specfleet.cli.options import daemon_command


def _run(config: DrafterConfig) -> int:
    from drafter.daemon import run

    return run(config)


command = daemon_command(
    "drafter",
    DrafterConfig,
    _run,
    summary="Draft next to the user and serve completions from a verifier's model.",
    examples="""
specfleet drafter --model models/tiny-draft --verifier 127.0.0.1:7600
specfleet drafter --model ngram --verifier gpu-1:7600 --verifier gpu-2:7600 \\
  --verifier-ca ca.pem --verifier-token token
""",
)
