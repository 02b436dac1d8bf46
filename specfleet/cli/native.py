"""`specfleet native`: the scheduler as machine code."""

from __future__ import annotations

import click

from specfleet.core.errors import ConfigurationError
from specfleet.native import folder, is_compiled
from specfleet.native.build import compile_modules, missing


@click.command("native")
@click.option("--if-possible", is_flag=True, help="Succeed where that fails, and say why.")
def command(if_possible: bool) -> None:
    """Compile the scheduler, and what a drafter knows of its guesses, for this machine.

    They decide the same, and a decision takes half of the time.

    \b
    pip install 'specfleet[native]' && specfleet native

    Daemons and simulations that start from now on use it; SPECFLEET_NATIVE=0 in the environment makes them run Python again.
    To be repeated after an update: what is compiled is never used with other sources.
    """
    if is_compiled():
        click.echo(f"compiled already: {folder()}")
        return
    if not missing():
        click.echo("compiling the scheduler, which takes about a minute", err=True)
    try:
        click.echo(f"compiled: {compile_modules()}")
    except ConfigurationError as error:
        if not if_possible:
            raise
        click.echo(f"not compiled: {error}", err=True)
