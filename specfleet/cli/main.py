"""`specfleet …`: a group whose commands are imported when used, and the one place where errors become exit codes.

Exit codes: 0 done, 2 bad usage or bad request, 3 cannot reach a server, 4 refused, 5 failed midway, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click
from click.shell_completion import CompletionItem

from specfleet import __version__
from specfleet.core.errors import ConfigurationError, SpecfleetError

INTERRUPTED = 130
_BROKEN_PIPE = 141

COMMANDS = {
    "verifier": ("specfleet.cli.verifier", "Serve a target model to drafters."),
    "drafter": ("specfleet.cli.drafter", "Draft next to the user; serve completions."),
    "generate": ("specfleet.cli.generate", "Complete one prompt."),
    "chat": ("specfleet.cli.chat", "Hold a conversation."),
    "demo": ("specfleet.cli.demo", "Run a whole fleet on this machine and compare."),
    "status": ("specfleet.cli.status", "Watch a running fleet."),
    "health": ("specfleet.cli.health", "Ask servers whether they are ready."),
    "bench": ("specfleet.cli.bench", "Put load on a running fleet and measure it."),
    "profile": ("specfleet.cli.profile", "Measure a model's steps on this machine."),
    "simulate": ("specfleet.cli.simulate", "Play a fleet of any size on a virtual clock."),
    "certs": ("specfleet.cli.certs", "Make a private authority and certificates."),
    "token": ("specfleet.cli.token", "Make a bearer token."),
    "native": ("specfleet.cli.native", "Compile the scheduler for this machine."),
    "completion": ("specfleet.cli.completion", "Make the tab key complete commands and flags."),
}
"""Command -> (module with `command`, one line of help)."""

EXTRAS = {
    "verifier": "verifier",
    "drafter": "drafter",
    "status": "bench",
    "bench": "bench",
    "profile": "verifier",
    "simulate": "simulator",
    "certs": "certs",
}
"""Command -> the extra of the distribution that brings what it imports; the others need the base only."""


class LazyGroup(click.Group):
    """Knows its commands by name; `--help` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        try:
            command = import_module(COMMANDS[cmd_name][0]).command
        except ImportError as error:
            raise _explained(cmd_name, error) from error
        if not isinstance(command, click.Command):
            raise TypeError(f"{COMMANDS[cmd_name][0]}.command is {command!r}, must be a click.Command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Without importing them all, which takes longer than anybody waits after a tab key."""
        flags = click.Command.shell_complete(self, ctx, incomplete)
        found = ((name, text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete))
        return [*(CompletionItem(name, help=text) for name, text in found), *flags]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(f"no command {args[0]!r}{_suggestion(args[0])}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="specfleet %(version)s")
def specfleet() -> None:
    """One GPU serves many users whose own machines draft: lossless distributed speculative decoding.

    \b
    specfleet verifier --model models/tiny-target          # on the machine with the GPU
    specfleet drafter --model models/tiny-draft --verifier 127.0.0.1:7600
    specfleet generate "Once upon a time" --max-tokens 64
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (the process's own by default); returns the exit code and never raises for a user's mistake.

    SPECFLEET_DEBUG=1 shows where an error came from.
    """
    args = list(sys.argv[1:] if arguments is None else arguments)
    # gRPC's own lines about handshakes would stand above our one line that says what to do.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        # click returns the exit code of --help and the like, and what our commands return: their exit code or None.
        code = specfleet.main(args, prog_name="specfleet", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SpecfleetError as error:
        return _failed(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        return _failed(_usage(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except ImportError as error:
        explained = _explained(next((word for word in args if word in COMMANDS), "this"), error)
        return _failed(str(explained), 2) if explained is not error else _bug(error)
    except Exception as error:  # noqa: BLE001 (the last resort: a bug is reported in one line too)
        return _bug(error)


def _bug(error: Exception) -> int:
    return _failed(f"unexpected {type(error).__name__}: {error}; this is a bug, SPECFLEET_DEBUG=1 shows where", 1)


def _failed(message: str, code: int) -> int:
    if "_SPECFLEET_COMPLETE" in os.environ:
        return code  # somebody pressed the tab key; what they have typed so far is theirs to mend
    if os.environ.get("SPECFLEET_DEBUG") == "1":
        traceback.print_exc()
    click.echo(f"specfleet: error: {' '.join(message.split())}", err=True)
    return code


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "specfleet"
    help_ = f" (see {where} --help)" if isinstance(error, click.UsageError) else ""
    return f"{error.format_message().rstrip('.')}{help_}"


def _suggestion(name: str) -> str:
    from difflib import get_close_matches

    found = get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else f"; there are {', '.join(COMMANDS)}"


def _explained(command: str, error: ImportError) -> Exception:
    """What to install for `command`; the error itself where a module of our own is missing, which nobody can install."""
    missing = (error.name or "").partition(".")[0]
    if missing in ("", "specfleet", "verifier", "drafter", "scheduler", "simulator"):
        return error
    package = f"'specfleet[{EXTRAS[command]}]'" if command in EXTRAS else "specfleet"
    return ConfigurationError(f"{command} needs {missing}: pip install {package}")


if __name__ == "__main__":
    sys.exit(main())
