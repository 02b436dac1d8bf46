"""`specfleet health`: what probes of containers and units ask."""

from __future__ import annotations

from typing import Any

import click

from specfleet.cli.server import connect, server_options

UNREACHABLE = 3
PROBE_SECONDS = 5.0


@click.command("health", context_settings={"default_map": {"timeout": PROBE_SECONDS}})
@click.option("--live", is_flag=True, help="Alive is enough; it need not be ready.")
@server_options
def command(live: bool, **flags: Any) -> int:
    """Ask servers whether they are ready, by gRPC's standard health service.

    \b
    specfleet health                                                     # a drafter on this machine
    specfleet health --server gpu-1:7600 --tls-ca ca.pem --timeout 2

    Exit code 0 if all are, else 3. No token is needed; where servers ask callers for certificates, one is.
    """
    with connect(flags) as client:
        answers = client.health()
    good = True
    for one in answers:
        good = good and (one.live if live else one.ready)
        state = "ready" if one.ready else "alive, not ready" if one.live else "not reached"
        click.echo(f"{one.target}: {state}{f': {one.message}' if one.message else ''}")
    return 0 if good else UNREACHABLE
