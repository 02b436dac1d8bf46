"""What counts as a network address."""

from __future__ import annotations

import ipaddress
import re

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/\s]+):(\d{1,5})")


def is_address(text: str) -> bool:
    """True for HOST:PORT with a port from 0 to 65535; an IPv6 host stands in brackets."""
    found = _ADDRESS.fullmatch(text)
    return found is not None and int(found[2]) <= 65535


def is_loopback(address: str) -> bool:
    """True where what is sent to HOST:PORT does not leave this machine."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
