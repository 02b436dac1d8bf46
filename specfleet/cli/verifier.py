"""`specfleet verifier`: the daemon with the target model."""

from __future__ import annotations

from specfleet.cli.options import daemon_command
from verifier.config import VerifierConfig


def _run(config: VerifierConfig) -> int:
    from verifier.daemon import run

    return run(config)


command = daemon_command(
    "verifier",
    VerifierConfig,
    _run,
    summary="Serve a target model to drafters.",
    examples="""
specfleet verifier --model models/tiny-target
specfleet verifier --model meta-llama/Llama-3.1-8B --device cuda:0 --listen 0.0.0.0:7600 \\
  --tls-cert server.pem --tls-key server.key --tokens tokens
specfleet verifier --config verifier.toml --speculation fixed:4
""",
)
