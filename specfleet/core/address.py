"""What counts as a network address."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/\s]+):(\d{1,5})")


def is_address(text: str) -> bool:
    """True for HOST:PORT with a port from 0 to 65535; an IPv6 host stands in brackets."""
    found = _ADDRESS.fullmatch(text)
    return found is not None and int(found[2]) <= 65535
