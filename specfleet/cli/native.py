"""`specfleet native`: the scheduler as machine code."""

from __future__ import annotations

import click

from specfleet.native import folder
from specfleet.native.build import compile_modules, missing


@click.command("native")
@click.option("--if-possible", is_flag=True, help="Say so and succeed where mypyc or a C compiler is missing.")
def command(if_possible: bool) -> None:
    """Compile the scheduler for this machine: it decides the same in less than half of the time.

    \b
    pip install 'specfleet[native]' && specfleet native

    Verifiers and simulations that start from now on use it; SPECFLEET_NATIVE=0 in the environment makes them run Python again.
    To be repeated after an update: what is compiled is never used with other sources.
    """
    if folder().is_dir():
        click.echo(f"compiled already: {folder()}")
        return
    lacking = missing()
    if lacking and if_possible:
        click.echo(f"not compiled, for lack of {lacking}: the scheduler runs as Python")
        return
    if not lacking:
        click.echo("compiling the scheduler, which takes about a minute", err=True)
    click.echo(f"compiled: {compile_modules()}")
