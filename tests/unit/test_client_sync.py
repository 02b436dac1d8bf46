"""Client, the blocking one, against a server in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from specfleet import Client, ConnectionError_, FinishReason, InvalidRequest, SamplingParams
from support.generation import serving_process, text_of


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving_process(delay=0.002) as found:
        yield found


def test_generate_chat_models_health(address: str) -> None:
    """Every call of AsyncClient works blocking."""
    with Client(address) as client:
        assert text_of(4) + "!" == client.generate("x", SamplingParams(max_tokens=4)).text
        assert text_of(2) + "!" == client.chat([{"role": "user", "content": "x"}], max_tokens=2).text
        assert [model.name for model in client.models()] == ["counting"]
        assert [health.ready for health in client.health()] == [True]


def test_stream(address: str) -> None:
    """Events come one by one, and the totals stand afterwards."""
    with Client(address) as client, client.stream("x", max_tokens=5) as stream:
        events = list(stream)

        assert text_of(5) + "!" == "".join(event.text for event in events) == stream.text
        assert stream.token_ids == (0, 1, 2, 3, 4)
        assert (stream.finish_reason, stream.usage.completion_tokens) == (FinishReason.LENGTH, 5)
        assert stream.speculation.acceptance_rate == 0.75
        assert 0 < stream.timing.ttft_s < stream.timing.total_s
        assert stream.server.model == "counting"
        assert stream.reply.text == stream.text


def test_cancel_from_another_thread(address: str) -> None:
    """cancel() ends an iteration that another thread waits in."""
    with Client(address) as client, client.stream("x", max_tokens=500) as stream:
        threading.Timer(0.2, stream.cancel).start()
        count = sum(1 for _ in stream)

    assert 0 < count < 500
    assert FinishReason.CANCELLED is stream.finish_reason


def test_errors_are_raised_where_they_belong(address: str) -> None:
    """Bad arguments fail at the call, unreachable servers when the answer is wanted."""
    with Client(address) as client, pytest.raises(InvalidRequest, match="top_p: is 2"):
        client.stream("x", top_p=2)
    with Client("127.0.0.1:1") as client, pytest.raises(ConnectionError_, match=r"127\.0\.0\.1:1"):
        client.generate("x")


def test_threads_share_a_client(address: str) -> None:
    """One client serves many threads at once."""
    texts: list[str] = []
    with Client(address) as client:
        work = [
            threading.Thread(target=lambda: texts.append(client.generate("x", max_tokens=50).text)) for _ in range(8)
        ]
        begun = time.monotonic()
        for one in work:
            one.start()
        for one in work:
            one.join()

    assert [text_of(50) + "!"] * 8 == texts
    assert time.monotonic() - begun < 5


def test_close_is_idempotent(address: str) -> None:
    """close() may be called twice; what was closed says so."""
    client = Client(address)
    client.close()
    client.close()

    with pytest.raises(RuntimeError, match="closed"):
        client.generate("x")


def test_callbacks_cannot_block_themselves(address: str) -> None:
    """A token callback that uses a blocking client is an error, not a deadlock."""
    with Client(address) as inner:

        def token() -> str:
            return inner.generate("x", max_tokens=1).text

        with Client(address, token=token) as client, pytest.raises(RuntimeError, match="from its own callbacks"):
            client.generate("x")


PROGRAM = """
import sys
from specfleet import Client

client = Client(sys.argv[1])
stream = client.stream("x", max_tokens=500)
next(iter(stream))
{ending}
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("", 0),
        ("raise SystemExit(7)", 7),
        ("import threading; threading.Thread(target=lambda: list(stream), daemon=True).start()", 0),
    ],
    ids=["forgotten", "exit", "running"],
)
def test_programs_exit(address: str, ending: str, code: int) -> None:
    """A program that forgets to close its client, even in the middle of a stream, exits at once and quietly."""
    begun = time.monotonic()
    program = [sys.executable, "-c", PROGRAM.format(ending=ending), address]

    found = subprocess.run(program, capture_output=True, text=True, timeout=30, check=False)

    assert (code, "", "") == (found.returncode, found.stdout, found.stderr)
    assert time.monotonic() - begun < 5
