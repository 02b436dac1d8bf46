"""Bytes that a message takes on its way: its protobuf encoding, gRPC's prefix and HTTP/2's frame header. Headers of the call,
TLS and TCP are left out. Ids are those of a vocabulary beyond 16,384, as of today's models: three bytes each.
"""

from __future__ import annotations

from functools import cache

from specfleet.core.protocol import Draft, Open, Opened, Verdict, VerifyRequest, VerifyResponse

FRAME = 5 + 9
ID = 3
SMALL = 24
"""Of messages that come once in a generation and hold a few numbers: Finished, Shadow, Close."""
OPEN = 100
"""Of Open beside its tokens: digest, sampling parameters, names."""
OPENED = 300
"""Of Opened, which describes the model; its size depends on how many ids end a text and on the classes."""


def size(message: VerifyRequest | VerifyResponse) -> int:
    """Bytes. Exact for drafts and verdicts of greedy or seeded text, which are all but a few messages."""
    if isinstance(message, Draft):
        body = _packed(len(message.tokens)) + _number(message.position) + _number(message.confirmed)
        body += (2 if message.last else 0) + (5 if message.draft_seconds else 0)
        if message.alternatives:
            body += sum(3 + ID + _number(one.offset) for one in message.alternatives)
    elif isinstance(message, Verdict):
        body = _packed(len(message.tokens)) + _number(message.position) + _number(message.drafted)
        grant = message.grant
        body += _number(message.accepted) + 4 + (2 if grant.length else 0) + 2
        body += (2 if grant.alternatives else 0) + (5 if grant.token_cost else 0)
    elif isinstance(message, Open):
        body = _packed(len(message.prompt)) + _packed(len(message.output)) + OPEN
    else:
        body = OPENED if isinstance(message, Opened) else SMALL
    return _framed(body)


@cache
def _framed(body: int) -> int:
    return body + 1 + varint(body) + FRAME


def varint(number: int) -> int:
    """Bytes of a number in protobuf."""
    return 1 if number < 128 else 2 if number < 16384 else 3 if number < 2097152 else 4


@cache
def _number(value: int) -> int:
    """A field with a number; zeros are not sent."""
    return 0 if not value else 2 if value < 128 else 3 if value < 16384 else 1 + varint(value)


@cache
def _packed(count: int) -> int:
    """A field with so many ids."""
    return 1 + varint(ID * count) + ID * count if count else 0
