"""The command line as its users run it: processes, pipes, exit codes."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from specfleet.cli import main as cli
from specfleet.cli.speculation import COLOURS, coloured
from specfleet.core.generation import Tokens
from specfleet.core.types import TokenKind
from support.generation import serving_process, text_of

PROGRAM = [sys.executable, "-m", "specfleet.cli.main"]
ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SPECFLEET_")}
    return {**clean, "PYTHONPATH": str(ROOT), **more}


def specfleet(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(**env),
        check=False,
    )


def assert_fails(found: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    """One line on stderr, the documented exit code, no traceback."""
    assert found.stderr.startswith("specfleet: error: "), found.stderr
    assert message in found.stderr
    assert found.stderr.count("\n") == 1, found.stderr
    assert code == found.returncode


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving_process(delay=0.001) as address:
        yield address


def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_generate_prints_the_text(server: str) -> None:
    """The text and a line break on standard output, nothing else, exit code 0."""
    found = specfleet("generate", "once", "--server", server, "--max-tokens", "5")

    assert (0, text_of(5) + "!\n", "") == (found.returncode, found.stdout, found.stderr)


def test_generate_streams() -> None:
    """Text is written when it arrives, not at the end."""
    with serving_process("3:hang") as address:
        process = subprocess.Popen(
            [*PROGRAM, "generate", "x", "--server", address], stdout=subprocess.PIPE, env=environment(), text=True
        )
        assert process.stdout is not None
        assert text_of(3) == process.stdout.read(len(text_of(3)))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130


def test_generate_json(server: str) -> None:
    """--json prints one object with every documented field on the last line of standard output."""
    found = specfleet("generate", "once", "--server", server, "--max-tokens", "3", "--logprobs", "--json")
    reply = json.loads(found.stdout.splitlines()[-1])

    assert (found.returncode, found.stdout.count("\n")) == (0, 1)
    assert (text_of(3) + "!", [0, 1, 2], "length") == (reply["text"], reply["token_ids"], reply["finish_reason"])
    assert reply["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "cached_tokens": 1}
    assert {"ttft_s", "tpot_s", "total_s"} == set(reply["timing"])
    assert reply["speculation"]["modes"] == {"local": 0, "stream": 0, "round": 1}
    assert {"drafter", "verifier", "model", "policy"} == set(reply["server"])
    assert reply["logprobs"] == [0.0, -1.0, -2.0]


def test_generate_reads_a_pipe_and_the_environment(server: str) -> None:
    """PROMPT "-" is standard input; SPECFLEET_SERVER names the server."""
    found = specfleet("generate", "-", "--max-tokens", "2", "--json", stdin="1234567", SPECFLEET_SERVER=server)

    assert json.loads(found.stdout)["usage"]["prompt_tokens"] == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "temperature: is -1.0, must be between 0 and 100"),
        (["--max-tokens", "0"], "max_tokens: is 0, must be at least 1"),
        (["--max-tokens", "many"], "'many' is not a valid integer"),
        (["--temprature", "1"], "Did you mean '--temperature'?"),
        (["--server", "localhost"], "address 'localhost' is not HOST:PORT"),
        (["--tls-ca", "/nowhere.pem"], "cannot read /nowhere.pem: No such file"),
        (["--timeout", "0"], "timeout: is 0.0, must be a finite number of seconds above 0"),
        (["--logprobs"], "--logprobs is shown with --json only; add --json"),
        (["more"], "unexpected extra argument"),
    ],
)
def test_bad_usage_is_exit_code_2(arguments: list[str], message: str) -> None:
    """What cannot be right is one line that names the value and the way out, exit code 2."""
    assert_fails(specfleet("generate", "x", *arguments), 2, message)


@pytest.mark.parametrize("arguments", [["generate", ""], ["generate"], ["generate", "x", "--server", ""]])
def test_nothing_given_is_exit_code_2(arguments: list[str]) -> None:
    """An empty prompt, no prompt and an empty server are bad usage."""
    assert_fails(specfleet(*arguments), 2, "")


def test_unknown_commands_suggest_the_nearest() -> None:
    """A misspelt command is answered with the right one."""
    assert_fails(specfleet("generat", "x"), 2, "no command 'generat'; did you mean generate?")
    assert_fails(specfleet("qqq"), 2, "no command 'qqq'; there are verifier, drafter, generate, chat")


def test_no_server_is_exit_code_3() -> None:
    """Nobody listening there: the address, and what to check."""
    address = closed_port()

    assert_fails(specfleet("generate", "x", "--server", address), 3, f"cannot reach {address}")


def test_refused_is_exit_code_4() -> None:
    """A server that refuses for lack of room or credentials."""
    with serving_process("0:overloaded") as address:
        assert_fails(specfleet("generate", "x", "--server", address), 4, "everybody is busy")


def test_failed_midway_is_exit_code_5() -> None:
    """A generation that ran out of time midway: what came is printed, with --json as an object that says so."""
    arguments = ("generate", "x", "--timeout", "1")
    with serving_process("2:hang", "3:hang") as address:
        text = specfleet(*arguments, "--server", address)
    with serving_process("2:hang") as address:
        found = specfleet(*arguments, "--json", "--server", address)

    assert_fails(text, 5, "out of time after 1 s and 2 tokens")
    assert_fails(found, 5, "out of time")
    assert text_of(2) + "\n" == text.stdout
    assert (json.loads(found.stdout)["finish_reason"], json.loads(found.stdout)["token_ids"]) == ("error", [0, 1])


def test_interrupted_is_exit_code_130() -> None:
    """Ctrl-C: no traceback, exit code 130, and with --json what there was, marked as cancelled."""
    with serving_process("2:hang") as address:
        process = subprocess.Popen(
            [*PROGRAM, "generate", "x", "--json", "--server", address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        time.sleep(3)  # nothing is printed yet that would say that two tokens have come
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)

    assert (process.returncode, err.strip()) == (130, "")
    assert (json.loads(out)["finish_reason"], json.loads(out)["token_ids"]) == ("cancelled", [0, 1])


def test_a_reader_that_leaves_is_no_error() -> None:
    """`specfleet generate … | head -c 4` ends quietly."""
    with serving_process(delay=0.01) as address:
        command = f"{' '.join(PROGRAM)} generate x --max-tokens 200 --server {address} | head -c 4"
        found = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, env=environment(), timeout=60, check=False
        )

    assert (found.stdout, found.stderr) == ("0 1 ", "")


def test_help_has_examples_and_imports_nothing_heavy() -> None:
    """--help of the group and of every command shows how to use it; the group's imports no command."""
    assert "specfleet generate" in specfleet("--help").stdout
    for name in cli.COMMANDS:
        found = specfleet(name, "--help")
        assert found.returncode == 0, found.stderr
        assert f"specfleet {name}" in found.stdout.partition("Options:")[0].partition("\n\n")[2]
    program = (
        "import sys; from specfleet.cli.main import main; main(['--help']);"
        "assert not {'grpc', 'pydantic', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True, capture_output=True)


def test_version() -> None:
    """--version names the program and its version."""
    assert specfleet("--version").stdout.startswith("specfleet ")


@pytest.mark.parametrize("name", ["verifier", "drafter"])
def test_a_missing_extra_is_one_sentence(name: str) -> None:
    """Without the extra's packages a daemon's command says what to install, and help still works."""
    program = (
        "import sys; sys.modules['pydantic'] = None\n"
        "from specfleet.cli.main import main\n"
        f"assert main(['--help']) == 0; sys.exit(main(['{name}', '--model', 'x']))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=False
    )

    assert_fails(found, 2, f"{name} needs pydantic: pip install 'specfleet[{name}]'")


def test_a_missing_engine_is_one_sentence() -> None:
    """The same where the package is missed only when the daemon starts."""
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from specfleet.cli.main import main; sys.exit(main(['verifier', '--model', 'x']))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=False
    )

    assert_fails(found, 2, "verifier needs torch: pip install 'specfleet[verifier]'")


def test_bugs_are_shown_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An error of ours is one line; SPECFLEET_DEBUG=1 adds where it happened."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(cli.specfleet, "main", broken)

    monkeypatch.delenv("SPECFLEET_DEBUG", raising=False)
    assert cli.main([]) == 1
    assert "specfleet: error: unexpected ZeroDivisionError: oh; this is a bug" in (quiet := capsys.readouterr().err)
    assert "Traceback" not in quiet
    monkeypatch.setenv("SPECFLEET_DEBUG", "1")
    assert cli.main([]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        ([], {}, "model is not set; give --model, SPECFLEET_VERIFIER_MODEL"),
        (["--model", "x", "--max-step-tokens", "1"], {}, "--max-step-tokens is '1', must be at least"),
        (["--model", "x", "--modle", "y"], {}, "Did you mean"),
        (["--model", "x"], {"SPECFLEET_VERIFIER_MODLE": "y"}, "did you mean SPECFLEET_VERIFIER_MODEL?"),
        (["--config", "/nowhere.toml"], {}, "cannot read /nowhere.toml"),
    ],
)
def test_daemon_settings_are_checked(arguments: list[str], env: dict[str, str], message: str) -> None:
    """A daemon's bad flag, variable or file is one line, exit code 2, before anything is loaded."""
    assert_fails(specfleet("verifier", *arguments, **env), 2, message)


def test_daemon_modules_are_the_same_commands() -> None:
    """`python -m verifier` is `specfleet verifier`."""
    for name in ("verifier", "drafter"):
        module = subprocess.run(
            [sys.executable, "-m", name, "--help"], capture_output=True, text=True, env=environment(), check=True
        )
        assert specfleet(name, "--help").stdout == module.stdout


# --- chat ------------------------------------------------------------------------------------------------------------


def test_chat_goes_on_until_quit(server: str) -> None:
    """Each line is answered with the conversation so far; /quit ends it."""
    found = specfleet("chat", "--server", server, "--max-tokens", "2", stdin="hi\n\nmore\n/quit\nnever\n")

    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.count(text_of(2) + "!\n") == 2


def test_chat_ends_with_the_input(server: str) -> None:
    """Ctrl-D (the end of the input) ends the conversation with exit code 0."""
    found = specfleet("chat", "--server", server, "--max-tokens", "1", stdin="hi\n")

    assert (found.returncode, found.stderr) == (0, "")
    assert text_of(1) in found.stdout


def test_chat_survives_a_failing_reply() -> None:
    """A reply that fails is one line, and the conversation goes on."""
    with serving_process("0:overloaded") as address:
        found = specfleet("chat", "--server", address, "--max-tokens", "2", stdin="hi\nagain\n")

    assert found.returncode == 0
    assert found.stderr == "specfleet: error: everybody is busy\n"
    assert text_of(2) in found.stdout


def test_chat_stops_a_reply_on_ctrl_c() -> None:
    """Ctrl-C ends the reply, not the conversation."""
    with serving_process("3:hang") as address:
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [*PROGRAM, "chat", "--server", address, "--max-tokens", "9"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(TERM="dumb"),
        )
        os.close(slave)
        seen = _read_until(master, b"> ")
        os.write(master, b"hi\n")
        seen += _read_until(master, b"2 ")
        process.send_signal(signal.SIGINT)
        seen += _read_until(master, b"(stopped)") + _read_until(master, b"> ")
        os.write(master, b"go on\n")
        seen += _read_until(master, b"8 ") + _read_until(master, b"> ")
        os.write(master, b"/quit\n")
        assert process.wait(timeout=20) == 0
        os.close(master)

    assert b"Traceback" not in seen


def _read_until(descriptor: int, end: bytes) -> bytes:
    found, deadline = b"", time.monotonic() + 60
    while end not in found:
        readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        assert readable, found
        found += os.read(descriptor, 1)
    return found


def test_speculation_is_coloured() -> None:
    """Each token's piece has the colour of how it came about; held-back text has none."""
    kinds = (TokenKind.ACCEPTED, TokenKind.RECOVERED, TokenKind.TARGET)
    event = Tokens((1, 2, 3), "abé", kinds, None, (1, 1, 1))

    expected = "".join(click.style(piece, fg=COLOURS[kind]) for piece, kind in zip("abé", kinds, strict=True))

    assert expected == coloured(event)
    assert click.unstyle(coloured(event)) == "abé"
    assert coloured(Tokens((), "rest")) == "rest"
    assert coloured(Tokens((1,), "old", (TokenKind.TARGET,))) == "old"


def test_chat_shows_speculation(server: str) -> None:
    """--show-speculation prints a legend and, below each reply, what speculation did."""
    found = specfleet("chat", "--server", server, "--max-tokens", "2", "--show-speculation", stdin="hi\n")

    assert "accepted recovered bonus target" in found.stdout
    assert "2 tokens, " in found.stdout and "3/4 drafted tokens accepted (75%)" in found.stdout
