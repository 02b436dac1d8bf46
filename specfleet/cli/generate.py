"""`specfleet generate`: one completion, streamed as it arrives, or as one JSON object."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from specfleet.cli.server import connect, sampling, sampling_options, server_options
from specfleet.cli.speculation import coloured, figures, legend
from specfleet.client import Stream
from specfleet.observability.progress import waiting


@click.command("generate")
@click.argument("prompt")
@server_options
@sampling_options
@click.option("--chat", is_flag=True, help="PROMPT is a user's message; apply the model's chat template.")
@click.option("--logprobs", is_flag=True, help="Log-probability of each token; needs --json.")
@click.option("--slo", default="", metavar="CLASS", help="Service class.")
@click.option("--model", default="", metavar="NAME", help="Refuse to be served by another model.")
@click.option("--target-only", is_flag=True, help="Nobody drafts for it; the text is the same.")
@click.option("--show-speculation", is_flag=True, help="Colour accepted, recovered and bonus tokens; figures below.")
@click.option("--json", "as_json", is_flag=True, help="Print one object at the end instead of the text.")
def command(
    prompt: str,
    chat: bool,
    slo: str,
    model: str,
    target_only: bool,
    show_speculation: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Complete PROMPT ("-" reads it from standard input).

    \b
    specfleet generate "Once upon a time" --max-tokens 64
    specfleet generate "2 + 2 =" --temperature 0 --json
    specfleet generate "def is_prime(n):" --show-speculation
    specfleet generate --chat "Why is the sky blue?" --server edge-7:7700 --stop "\\n\\n"
    git diff | specfleet generate - --seed 7

    Times in --json: ttft_s from sending to the first token; tpot_s = (total - ttft) / (n - 1).
    """
    if flags["logprobs"] and not as_json:
        raise click.UsageError("--logprobs is shown with --json only; add --json")
    if show_speculation and as_json:
        raise click.UsageError("--json has the figures of --show-speculation, and no colours; give one of them")
    if prompt == "-":
        prompt = sys.stdin.read()
    messages = [{"role": "user", "content": prompt}] if chat else None
    with connect(flags) as client:
        stream = client.stream(
            None if chat else prompt,
            messages=messages,
            model=model,
            service_class=slo,
            target_only=target_only,
            **sampling(flags),
        )
        with stream:
            _print_json(stream) if as_json else _print_text(stream, show_speculation)


def _print_text(stream: Stream, show_speculation: bool) -> None:
    try:
        with waiting("waiting for the first token"):
            event = next(stream, None)
        while event is not None:
            click.echo(coloured(event) if show_speculation else event.text, nl=False)
            event = next(stream, None)
    finally:
        if stream.token_ids:
            click.echo()
    if show_speculation:
        click.echo(f"{legend()}\n{figures(stream)}")


def _print_json(stream: Stream) -> None:
    """The object comes also when the generation fails or is interrupted midway; finish_reason says so."""
    try:
        with waiting("waiting for the first token") as tell:
            for _ in stream:
                tell(f"{len(stream.token_ids)} tokens")
    finally:
        stream.cancel()
        if stream.token_ids:
            click.echo(json.dumps(stream.reply.to_dict(), ensure_ascii=False))
