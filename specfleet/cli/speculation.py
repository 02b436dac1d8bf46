"""Where tokens came from, in colours, and what speculation did: what `generate`, `chat` and `demo` show of a text."""

from __future__ import annotations

import click

from specfleet.client import Stream
from specfleet.core.generation import Tokens
from specfleet.core.types import TokenKind

COLOURS = {
    TokenKind.ACCEPTED: "green",
    TokenKind.RECOVERED: "yellow",
    TokenKind.BONUS: "cyan",
    TokenKind.TARGET: None,
}


def coloured(event: Tokens) -> str:
    """The event's text, each token's part in the colour of how it came about."""
    if len(event.kinds) != len(event.text_lengths):
        return event.text
    return "".join(
        click.style(piece, fg=COLOURS[kind]) if piece else ""
        for piece, kind in zip(event.pieces, event.kinds, strict=True)
    ) + ("" if event.token_ids else event.text)


def legend() -> str:
    """The colours' names."""
    return " ".join(click.style(kind.value, fg=colour) for kind, colour in COLOURS.items())


def figures(stream: Stream) -> str:
    """Of a text that is over: tokens, times, and how many drafted tokens were right."""
    speculation, timing = stream.speculation, stream.timing
    rate = speculation.acceptance_rate
    accepted = f"{speculation.accepted}/{speculation.drafted} drafted tokens accepted"
    return click.style(
        f"[{len(stream.token_ids)} tokens, {timing.ttft_s:.2f} s to the first, {timing.tpot_s * 1000:.0f} ms each; "
        + (f"{accepted} ({rate:.0%})" if rate is not None else "no speculation")
        + "]",
        dim=True,
    )
