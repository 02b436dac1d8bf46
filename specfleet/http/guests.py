"""Pages of other sites, in a browser on the same machine, must not call a server that asks nobody who they are.

A browser asks before it sends JSON elsewhere, and is not answered; but a name of the other site's may be made to lead to this
machine (DNS rebinding). Such calls come under that name, which is none of ours.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from specfleet.core.errors import PermissionDenied

LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


def check_host(hosts: Sequence[str]) -> None:
    """For a server on loopback without tokens: the name that it is called by must be its own. Raises PermissionDenied."""
    for host in hosts:
        name = _name(host)
        if not _ours(name):
            raise PermissionDenied(
                f"this server listens for its own machine only, and is not called {name[:100]!r}; use its address, or have "
                "it ask for tokens (--tokens)"
            )


def _name(host: str) -> str:
    """Without the port."""
    bare = host.strip().lower()
    if bare.startswith("["):
        return bare[1:].partition("]")[0]
    return bare.partition(":")[0]


def _ours(name: str) -> bool:
    if name in ("", "localhost", socket.gethostname().lower()) or name.endswith(LOCAL_SUFFIXES):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
