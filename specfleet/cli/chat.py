"""`specfleet chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

from specfleet.cli.server import connect, sampling, sampling_options, server_options
from specfleet.cli.speculation import coloured, figures, legend
from specfleet.client import Client
from specfleet.core.errors import SpecfleetError
from specfleet.core.generation import ChatMessage
from specfleet.core.types import SamplingParams
from specfleet.observability.progress import waiting

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
    parameters = sampling(flags)
    SamplingParams(**parameters)  # said now, and not after the first message
    with connect(flags) as client:
        served = client.models()[0].name
        if sys.stdin.isatty():
            _edit_lines()
            click.echo(click.style(f"{served}. /quit or Ctrl-D ends it, Ctrl-C stops a reply.", dim=True))
        if show_speculation:
            click.echo(legend())
        while (text := _ask()) is not None:
            if text:
                messages = _reply(client, [*messages, ChatMessage("user", text)], parameters, show_speculation)


def _edit_lines() -> None:
    """Cursor keys and a history in what is typed, where Python was built with readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (importing it is what does it)


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
            with waiting("waiting for the first token"):
                event = next(stream, None)
            while event is not None:
                click.echo(coloured(event) if colours else event.text, nl=False)
                event = next(stream, None)
        except KeyboardInterrupt:
            stream.cancel()
            click.echo(" (stopped)", nl=False)
        except SpecfleetError as error:
            click.echo(f"specfleet: error: {error}", err=True)
            return messages[:-1]
        click.echo()
        if colours:
            click.echo(figures(stream))
        return [*messages, ChatMessage("assistant", stream.text)]
