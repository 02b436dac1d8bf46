"""`specfleet chat`: a conversation in the terminal."""

from __future__ import annotations

from typing import Any

import click

from specfleet.cli.server import connect, sampling, sampling_options, server_options
from specfleet.client import Client, Stream
from specfleet.core.errors import SpecfleetError
from specfleet.core.generation import ChatMessage, Tokens
from specfleet.core.types import TokenKind

COLOURS = {
    TokenKind.ACCEPTED: "green",
    TokenKind.RECOVERED: "yellow",
    TokenKind.BONUS: "cyan",
    TokenKind.TARGET: None,
}
_QUIT = ("/quit", "/exit")


@click.command("chat")
@server_options
@sampling_options
@click.option("--system", default="", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("--show-speculation", is_flag=True, help="Colour accepted, recovered and bonus tokens; figures below.")
def command(system: str, show_speculation: bool, **flags: Any) -> None:
    """Hold a conversation. /quit or Ctrl-D ends it, Ctrl-C stops a reply.

    \b
    specfleet chat
    specfleet chat --server edge-7:7700 --temperature 0.7 --show-speculation
    """
    messages = [ChatMessage("system", system)] if system else []
    with connect(flags) as client:
        if show_speculation:
            click.echo(_legend())
        while (text := _ask()) is not None:
            if text:
                messages = _reply(client, [*messages, ChatMessage("user", text)], sampling(flags), show_speculation)


def _ask() -> str | None:
    """The user's next message, "" for nothing said, None for the end of the conversation."""
    try:
        text = input("> ").strip()
    except EOFError:
        click.echo()
        return None
    except KeyboardInterrupt:
        click.echo()
        return ""
    return None if text in _QUIT else text


def _reply(client: Client, messages: list[ChatMessage], parameters: dict[str, Any], colours: bool) -> list[ChatMessage]:
    """Stream one reply; returns the conversation with it. What fails is said, and its message forgotten."""
    with client.stream(messages=messages, **parameters) as stream:
        try:
            for event in stream:
                click.echo(coloured(event) if colours else event.text, nl=False)
        except KeyboardInterrupt:
            stream.cancel()
            click.echo(" (stopped)", nl=False)
        except SpecfleetError as error:
            click.echo(f"specfleet: error: {error}", err=True)
            return messages[:-1]
        click.echo()
        if colours:
            click.echo(_figures(stream))
        return [*messages, ChatMessage("assistant", stream.text)]


def coloured(event: Tokens) -> str:
    """The event's text, each token's part in the colour of how it came about."""
    if len(event.kinds) != len(event.text_lengths):
        return event.text
    return "".join(
        click.style(piece, fg=COLOURS[kind]) if piece else ""
        for piece, kind in zip(event.pieces, event.kinds, strict=True)
    ) + ("" if event.token_ids else event.text)


def _legend() -> str:
    return " ".join(click.style(kind.value, fg=colour) for kind, colour in COLOURS.items())


def _figures(stream: Stream) -> str:
    speculation, timing = stream.speculation, stream.timing
    rate = speculation.acceptance_rate
    accepted = f"{speculation.accepted}/{speculation.drafted} drafted tokens accepted"
    return click.style(
        f"[{len(stream.token_ids)} tokens, {timing.ttft_s:.2f} s to the first, {timing.tpot_s * 1000:.0f} ms each; "
        + (f"{accepted} ({rate:.0%})" if rate is not None else "no speculation")
        + "]",
        dim=True,
    )
