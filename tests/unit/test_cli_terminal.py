"""The command line in a terminal: colours, lines that say what is going on, Ctrl-C, the tab key."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from specfleet.cli.main import COMMANDS
from support.generation import serving_process, text_of
from support.pair import ROOT, TARGET
from support.terminal import terminal

CTRL_C = "\x03"
ANY = "127.0.0.1:0"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving_process(delay=0.001) as address:
        yield address


@pytest.fixture(scope="module")
def metrics() -> Iterator[str]:
    registry = CollectorRegistry()
    Gauge("specfleet_verifier_sessions", "Sessions.", ["state"], registry=registry).labels("open").set(7)
    http, thread = start_http_server(0, "127.0.0.1", registry)
    yield f"127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()
    thread.join()


# --- colours ---------------------------------------------------------------------------------------------------------


def test_generate_shows_where_tokens_came_from(server: str) -> None:
    """Each token in the colour of its kind, the legend in the same colours, and figures; without the flag neither."""
    arguments = ("generate", "x", "--server", server, "--max-tokens", "5")
    with terminal(*arguments, "--show-speculation") as shown:
        assert shown.wait() == 0
    with terminal(*arguments) as plain:
        assert plain.wait() == 0
    colours = {"accepted": "32", "bonus": "36", "recovered": "33"}
    for text, kind in (("0 ", "accepted"), ("2 ", "bonus"), ("4 ", "recovered")):
        assert f"\x1b[{colours[kind]}m{text}\x1b[0m" in shown.seen
        assert f"\x1b[{colours[kind]}m{kind}\x1b[0m" in shown.seen
    assert "[5 tokens, " in shown.text and "3/4 drafted tokens accepted (75%)" in shown.text
    assert f"{text_of(5)}!\r\n" == plain.seen


def test_chat_greets_and_says_how_to_leave(server: str) -> None:
    with terminal("chat", "--server", server, "--max-tokens", "2") as chat:
        chat.until("counting. /quit or Ctrl-D ends it", "> ")
        chat.press("hi\n")
        chat.until("0 1 !", "> ")
        chat.press("/quit\n")
        assert chat.wait() == 0


# --- what takes a while ----------------------------------------------------------------------------------------------


def test_waiting_for_the_first_token_is_shown_and_wiped() -> None:
    """Seconds that pass; Ctrl-C ends it with exit code 130 and an empty line."""
    with serving_process("0:hang") as address, terminal("generate", "x", "--server", address) as found:
        found.until("waiting for the first token … 2 s", "waiting for the first token … 3 s")
        found.press(CTRL_C)
        assert found.wait() == 130
    assert found.seen.rpartition("\x1b[K")[2].strip() == ""


def test_nothing_is_shown_where_nobody_watches() -> None:
    """Standard error in a file stays empty."""
    command = [sys.executable, "-m", "specfleet.cli.main", "generate", "x", "--timeout", "4"]
    with serving_process("0:hang") as address:
        found = subprocess.run([*command, "--server", address], capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.stderr.startswith("specfleet: error: out of time"), found.stderr


def test_a_daemon_says_that_it_waits_for_its_verifier() -> None:
    """And Ctrl-C ends it there."""
    where = ("--listen", ANY, "--http", "", "--metrics", "")
    with terminal("drafter", "--model", "ngram", "--verifier", "127.0.0.1:1", *where) as drafter:
        drafter.until("waiting for 127.0.0.1:1 … 2 s")
        drafter.press(CTRL_C)
        assert drafter.wait() == 130


@pytest.mark.parametrize(
    ("arguments", "begun"),
    [
        (("verifier", "--model", str(TARGET), "--listen", ANY, "--metrics", ""), "seed = (none)"),
        (("simulate", "dsd-600"), "events/s"),
        (("demo",), "starting one verifier"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_ctrl_c_ends_what_is_at_work(arguments: tuple[str, ...], begun: str) -> None:
    """At once, exit code 130 or the signal's own, no traceback: loading, simulating, measuring, waiting for daemons."""
    with terminal(*arguments) as found:
        found.until(begun)
        found.press(CTRL_C)
        assert found.wait() in (130, -signal.SIGINT), found.text[-600:]


# --- status ----------------------------------------------------------------------------------------------------------


def test_status_is_drawn_over_and_leaves_its_last_picture(metrics: str) -> None:
    """On the terminal's second screen; lines of a narrow one are those of a wide one's columns."""
    pictures = {}
    for columns in (160, 60):
        with terminal("status", "--metrics", metrics, "--interval", "0.2", columns=columns) as status:
            status.until(metrics, "steps/s")
            status.until(metrics, "steps/s")
            status.press(CTRL_C)
            assert status.wait() == 130
        second, last = status.seen.split("\x1b[?1049l")
        assert second.startswith("\x1b[?1049h") and second.count(metrics) >= 2
        pictures[columns] = last
    assert re.search(rf"verifier +sessions +queue.*\n{metrics} +7 ", pictures[160].replace("\r", ""))
    assert re.search(rf"verifier +{metrics}\nsessions +7\nqueue", pictures[60].replace("\r", ""))


# --- the tab key -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a program `specfleet`, as a terminal finds it."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "specfleet"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m specfleet.cli.main "$@"\n')
    program.chmod(0o755)
    return folder


def test_bash_completes(bash: Path) -> None:
    """The script that ships, in a real bash: commands, flags, policies, choices, files; a wrong command is no noise."""
    asked = {
        "specfleet ''": " ".join(COMMANDS),
        "specfleet gen": "generate",
        "specfleet drafter --rout": "--routing",
        "specfleet drafter --routing r": "round-robin random",
        "specfleet verifier --speculation f": "fair-goodput fixed",
        "specfleet simulate tut": "tutorial",
        "specfleet nonsense --": "--version --help",
        "specfleet verifier --model m": "files",
    }
    script = (
        'eval "$(specfleet completion bash)"\n'
        'compopt() { echo -n "files"; }\n'  # what bash would do next by itself
        'ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _specfleet_completion specfleet; '
        'echo "${COMPREPLY[*]}"; }\n' + "".join(f"ask {words}\n" for words in asked)
    )
    env = {**os.environ, "PATH": f"{bash}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env, cwd=ROOT, check=False)

    assert found.stderr == ""
    assert dict(zip(asked, found.stdout.split("\n"), strict=False)) == asked


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(shell: str) -> None:
    """It asks this program."""
    command = [sys.executable, "-m", "specfleet.cli.main", "completion", shell]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "_SPECFLEET_COMPLETE" in found.stdout
