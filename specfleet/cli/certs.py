"""`specfleet certs`: a private authority, and certificates of it, for trying TLS out or for a fleet of one's own."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import click

from specfleet.cli.authority import Authority, write_pair
from specfleet.core.errors import ConfigurationError

LOCAL = ("localhost", "127.0.0.1", "::1")
AUTHORITY_DAYS = 3650.0


@click.command("certs")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Name or address that callers use; repeatable.  [this machine]",
)
@click.option("--client", "clients", multiple=True, metavar="NAME", help="Who gets a client certificate; repeatable.")
@click.option(
    "--days", type=float, default=90.0, show_default=True, metavar="N", help="How long certificates are valid."
)
def command(folder: Path, hosts: tuple[str, ...], clients: tuple[str, ...], days: float) -> None:
    """Make a private authority and certificates in FOLDER.

    \b
    specfleet certs certs --host gpu-1 --host 10.0.0.7 --client edge-7
    specfleet verifier --tls-cert certs/server.pem --tls-key certs/server.key --tls-client-ca certs/ca.pem …
    specfleet drafter --verifier-ca certs/ca.pem --verifier-cert certs/edge-7.pem --verifier-key certs/edge-7.key …

    ca.pem is what callers trust; keep ca.key to yourself. Where FOLDER has an authority already, it signs new certificates in
    place of the old ones, which running daemons take up by themselves.
    """
    if not 0 < days <= AUTHORITY_DAYS:
        raise click.UsageError(f"--days is {days:g}, must be above 0 and at most {AUTHORITY_DAYS:g}")
    for host in hosts:
        if not _is_host(host):
            raise click.UsageError(f"--host {host!r} is no name or address of a machine; repeat --host to give several")
    for client in clients:
        if not re.fullmatch(r"[\w.@-]+", client) or client in ("ca", "server"):
            raise click.UsageError(
                f"--client {client!r} is no name for a file: letters, digits, . _ @ -, not ca or server"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make {folder}: {(error.strerror or str(error)).lower()}") from None
    authority = Authority.load(folder)
    if authority is None:
        authority = Authority.new("specfleet private authority", AUTHORITY_DAYS)
        authority.save(folder)
    names = hosts or LOCAL
    write_pair(folder, "server", *authority.issue(names[0], "server", days, names))
    for client in clients:
        write_pair(folder, client, *authority.issue(client, "client", days))
    for stem in ("ca", "server", *clients):
        click.echo(folder / f"{stem}.pem")


def _is_host(name: str) -> bool:
    """An address, or a name, its first part perhaps a star."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return bool(re.fullmatch(r"(\*\.)?[\w-]+(\.[\w-]+)*", name, re.ASCII))
    return True
