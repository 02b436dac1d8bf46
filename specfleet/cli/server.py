"""What `generate`, `chat` and `bench` share: which server, which sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from specfleet.cli.completion import files
from specfleet.client import Client, Tls

F = TypeVar("F", bound=Callable[..., Any])

SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "logprobs")


def server_option(help_: str) -> Callable[[F], F]:
    """--server, with what several of them mean to this command."""
    return click.option(
        "--server",
        "servers",
        multiple=True,
        metavar="HOST:PORT",
        envvar="SPECFLEET_SERVER",
        default=("127.0.0.1:7700",),
        show_default=True,
        help=help_,
    )


def server_options(function: F) -> F:
    """--server, --timeout, and the caller's credentials."""
    return server_option("A drafter, or a verifier; repeat it to have others to turn to.")(call_options(function))


def call_options(function: F) -> F:
    """--timeout, and the caller's credentials."""
    for option in reversed(
        (
            click.option(
                "--timeout", type=float, metavar="SECONDS", default=300.0, show_default=True, help="For one reply."
            ),
            click.option(
                "--token", envvar="SPECFLEET_TOKEN", metavar="TEXT", help="Bearer token; better in SPECFLEET_TOKEN."
            ),
            click.option("--tls", "use_tls", is_flag=True, help="Use TLS, and trust public authorities."),
            click.option(
                "--tls-ca", metavar="FILE", shell_complete=files, help="Use TLS, and trust these authorities (PEM)."
            ),
            click.option(
                "--tls-cert",
                metavar="FILE",
                shell_complete=files,
                help="Certificate to show where one is asked for (PEM).",
            ),
            click.option("--tls-key", metavar="FILE", shell_complete=files, help="Its private key (PEM)."),
            click.option("--insecure", is_flag=True, help="Plaintext to other machines is meant."),
        )
    ):
        function = option(function)
    return function


def sampling_options(function: F) -> F:
    """The fields of SamplingParams; their limits are checked there."""
    for option in reversed(
        (
            click.option("--max-tokens", type=int, metavar="N", help="Most tokens to generate.  [default 128]"),
            click.option("--temperature", type=float, metavar="X", help="0 takes the likeliest token.  [default 1]"),
            click.option("--top-p", type=float, metavar="X", help="Keep the likeliest tokens up to this probability."),
            click.option("--top-k", type=int, metavar="N", help="Keep the N likeliest tokens; 0 keeps all."),
            click.option("--min-p", type=float, metavar="X", help="Drop tokens below this share of the likeliest."),
            click.option(
                "--seed", type=int, metavar="N", help="Make the text a function of prompt, parameters and seed."
            ),
            click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable."),
        )
    ):
        function = option(function)
    return function


def connect(flags: dict[str, Any]) -> Client:
    """Takes what `server_options` gave out of `flags`. Raises ConfigurationError."""
    return Client(flags.pop("servers"), **client_arguments(flags))


def client_arguments(flags: dict[str, Any]) -> dict[str, Any]:
    """Takes what `call_options` gave out of `flags`: keyword arguments of Client and AsyncClient."""
    files = [flags.pop(name) for name in ("tls_ca", "tls_cert", "tls_key")]
    use_tls = flags.pop("use_tls") or any(files)
    return {
        "timeout": flags.pop("timeout"),
        "token": flags.pop("token"),
        "tls": Tls.from_files(*files) if use_tls else None,
        "insecure": flags.pop("insecure"),
    }


def sampling(flags: dict[str, Any]) -> dict[str, Any]:
    """The sampling parameters that were said."""
    said = {name: flags.get(name) for name in SAMPLING}
    # By identity: 0 is something that was said, though it equals False.
    return {name: value for name, value in said.items() if value is not None and value is not False and value != ()}
