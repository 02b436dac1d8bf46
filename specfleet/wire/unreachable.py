"""What gRPC says of a connection that did not come about, in words that say what to do."""

from __future__ import annotations

import re

_LAST = re.compile(
    r"^failed to connect to all addresses; last error: [A-Z_]+: (?P<address>[^ ]+): (?P<error>.*)$", re.S
)
_ASK = "is it running there, and is the address right?"

_KNOWN = (
    ("Connection refused", f"connection refused at {{address}}; {_ASK}"),
    (
        "WRONG_VERSION_NUMBER",
        "it does not speak TLS; leave TLS out here, or give it --tls-cert and --tls-key",
    ),
    ("certificate has expired", "its certificate has expired; its operator has to renew it"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "its certificate is not from an authority that is trusted here; name the file of the one that is (--tls-ca, "
        "--verifier-ca)",
    ),
    (
        "Hostname Verification Check failed",
        "its certificate is for other names; call it by one of them, or make one for this name (specfleet certs --host)",
    ),
    (
        "Socket closed",
        "it hung up at once; a server with TLS does that to who comes without (--tls-ca, --verifier-ca), or without the "
        "client certificate that it asks for",
    ),
    (
        "Failed parsing HTTP/2",
        "what answers there does not speak gRPC; give the address that the daemon says as grpc= when ready",
    ),
)
"""A part of gRPC's text -> what it means. Versions word the rest of it differently."""


def why(details: str) -> str:
    """`details` of a call that found no server: what failed at the address that was tried last, and the way out."""
    if "errors resolving" in details and "not found" in details:
        return f"no machine of that name is known here; {_ASK}"
    last = _LAST.match(details)
    if last is None:
        return f"{details}; {_ASK}"
    for part, meaning in _KNOWN:
        if part in last["error"]:
            return meaning.format(address=_readable(last["address"]))
    return f"{last['error']}; {_ASK}"


def _readable(address: str) -> str:
    """ipv6:%5B::1%5D:7700 -> [::1]:7700. localhost is both ::1 and 127.0.0.1: then the other's trouble was not the last."""
    found = address.partition(":")[2].replace("%5B", "[").replace("%5D", "]")
    return f"{found}, the last address tried" if found.startswith("[") else found
