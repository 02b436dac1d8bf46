"""`specfleet completion`: the shell's tab key knows commands, flags, policies, files."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem, get_completion_class

VARIABLE = "_SPECFLEET_COMPLETE"
"""Set where the shell asks for completions; click's name for it."""
SHELLS = ("bash", "zsh", "fish")
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete specfleet's commands, flags and values at the tab key.

    \b
    eval "$(specfleet completion bash)"                  # in ~/.bashrc
    eval "$(specfleet completion zsh)"                   # in ~/.zshrc
    specfleet completion fish > ~/.config/fish/completions/specfleet.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(kind(context.find_root().command, {}, "specfleet", VARIABLE).source())


def files(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and folders, for options that are checked elsewhere."""
    return [CompletionItem(incomplete, type="file")]


def values(known: Iterable[str]) -> Completer:
    """These values, which are not all that there are."""
    found = tuple(known)
    return lambda _context, _parameter, incomplete: [CompletionItem(one) for one in found if one.startswith(incomplete)]
