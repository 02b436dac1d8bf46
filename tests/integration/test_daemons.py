"""Real daemons: what they leave behind, what they cost, and how they answer mistakes."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from specfleet import AsyncClient, Client, InvalidRequest, PromptTooLong, SamplingParams, SpecfleetError
from support.daemons import Daemon, fleet, running, start_drafter, start_verifier, wait_until_empty
from support.pair import DRAFT, TARGET

MIB = 2**20
Fleet = tuple[Daemon, Daemon, Daemon]


@pytest.fixture(scope="module")
def daemons() -> Iterator[Fleet]:
    """A verifier, a model drafter and an n-gram drafter, changing modes at random."""
    with fleet("--speculation", "random") as (verifier, drafter, ngram):
        yield verifier, drafter, ngram


def specfleet(*arguments: str, timeout: float = 90) -> subprocess.CompletedProcess[str]:
    """The packaged command, run to its end."""
    command = [str(Path(sys.executable).parent / "specfleet"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def one_line(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The command failed with this code and one line that holds these words."""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert code == result.returncode, result.stderr
    assert 1 == len(lines), result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    missing = [word for word in words if word not in lines[0]]
    assert not missing, f"{missing} not in {lines[0]}"


# --- what is left behind -------------------------------------------------------------------------------------------


def test_a_client_that_is_killed_leaves_nothing(daemons: Fleet) -> None:
    """SIGKILL of a client in the middle of its stream frees session and pages."""
    verifier, drafter, ngram = daemons
    for server in (drafter, ngram, verifier):
        code = (
            "from specfleet import Client\n"
            f"with Client({server.address!r}).stream('Once upon a time', max_tokens=1500, ignore_eos=True) as stream:\n"
            "    for event in stream: print('token', flush=True)\n"
        )
        client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None
        assert "token\n" == client.stdout.readline()
        assert verifier.metric("specfleet_verifier_sessions") == 1
        client.kill()
        client.wait()
        client.stdout.close()
        wait_until_empty(verifier)


@pytest.mark.asyncio
async def test_cancelled_and_finished_streams_leave_nothing(daemons: Fleet) -> None:
    """Streams that finish, are cancelled, or run into their deadline free session and pages."""
    verifier, drafter, _ = daemons
    async with AsyncClient(drafter.address) as client:
        async with client.stream("The sea was calm", max_tokens=1500, ignore_eos=True) as stream:
            async for _event in stream:
                break
        with pytest.raises(TimeoutError):
            await client.generate("The sea was calm", max_tokens=1500, ignore_eos=True, timeout=1.0)
        reply = await client.generate("The sea was calm", max_tokens=5, ignore_eos=True)
        assert 5 == len(reply.token_ids)
    wait_until_empty(verifier)
    assert verifier.metric("specfleet_verifier_requests_total", finish_reason="cancelled") >= 2


def test_a_repeated_prompt_is_found_in_the_prefix_cache(daemons: Fleet) -> None:
    """The second generation of one long prompt says how many of its tokens were cached."""
    _, drafter, _ = daemons
    prompt = "There was a house at the end of the road, and in it lived a clockmaker. " * 5
    with Client(drafter.address) as client:
        first = client.generate(prompt, max_tokens=4, temperature=0.0)
        second = client.generate(prompt, max_tokens=4, temperature=0.0)
    assert first.token_ids == second.token_ids
    assert second.usage.cached_tokens >= second.usage.prompt_tokens - 16 > 0


def test_logprobs_come_with_the_tokens(daemons: Fleet) -> None:
    """Asked for, every token carries the target's log-probability; greedy tokens are the likeliest."""
    _, drafter, _ = daemons
    with Client(drafter.address) as client:
        reply = client.generate("Once upon a time", max_tokens=12, temperature=0.0, logprobs=True, top_logprobs=2)
    assert reply.logprobs is not None and reply.top_logprobs is not None
    assert len(reply.token_ids) == len(reply.logprobs)
    assert all(-8.0 < value <= 0.0 for value in reply.logprobs)
    assert [*zip(reply.token_ids, reply.logprobs, strict=True)] == [place[0] for place in reply.top_logprobs]
    assert (
        {2} == {len(place) for place in reply.top_logprobs} == {len(place) for place in reply.to_dict()["top_logprobs"]}
    )


def test_the_json_object_of_generate_has_its_fields(daemons: Fleet) -> None:
    """`generate --json` ends in one object with exactly the names that scripts rely on."""
    _, drafter, _ = daemons
    result = specfleet("generate", "Once upon a time", "--server", drafter.address, "--max-tokens", "8", "--json")
    assert 0 == result.returncode, result.stderr
    reply = json.loads(result.stdout.splitlines()[-1])
    assert {"text", "token_ids", "finish_reason", "usage", "timing", "speculation", "server"} == set(reply)
    assert {"ttft_s", "tpot_s", "total_s"} == set(reply["timing"])
    assert {"drafter", "verifier", "model", "policy"} == set(reply["server"])
    expected = {"rounds", "drafted", "accepted", "target_only_tokens", "resumes", "modes", "lengths"}
    assert expected | {"acceptance_rate", "mean_accepted_length"} == set(reply["speculation"])
    assert 8 == len(reply["token_ids"]) == reply["usage"]["completion_tokens"]


# --- what it costs -------------------------------------------------------------------------------------------------


def test_memory_of_the_daemons(daemons: Fleet) -> None:
    """The verifier stays under 1.2 GB, an idle n-gram drafter under 150 MB and without torch."""
    verifier, _, ngram = daemons
    assert verifier.rss_bytes < 1.2e9
    assert ngram.rss_bytes < 150e6
    mapped = Path(f"/proc/{ngram.process.pid}/maps").read_text()
    assert "libtorch" not in mapped


# --- mistakes ------------------------------------------------------------------------------------------------------


def test_bad_requests_disturb_nobody_else(daemons: Fleet) -> None:
    """While refusals of every kind go on, a stream beside them runs to its end."""
    verifier, drafter, _ = daemons
    with Client(drafter.address) as client, client.stream("The king", max_tokens=200, ignore_eos=True) as stream:
        events = iter(stream)
        next(events)
        for server in (drafter, verifier):
            with Client(server.address) as other:
                with pytest.raises(PromptTooLong, match="2048"):
                    other.generate("word " * 4000)
                with pytest.raises(InvalidRequest, match="prompt"):
                    other.generate("")
                with pytest.raises(InvalidRequest, match="5000"):
                    other.generate([5000])
                with pytest.raises(SpecfleetError, match="nonesuch"):
                    other.generate("x", model="nonesuch")
                with pytest.raises(InvalidRequest, match="gold"):
                    other.generate("x", service_class="gold")
        for _ in events:
            pass
        assert 200 == len(stream.token_ids)
    wait_until_empty(verifier)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--temperature", "-1"), 2, ("temperature", "-1", "between 0 and 100")),
        (("--max-tokens", "0"), 2, ("max_tokens", "0", "at least 1")),
        (("--top-p", "1.5"), 2, ("top_p", "1.5")),
        (("--nonsense",), 2, ("--nonsense",)),
        (("--max-tokens", "many"), 2, ("many",)),
    ],
)
def test_wrong_arguments_of_generate(
    daemons: Fleet, arguments: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    """One line that names the value and the limit, and exit code 2."""
    one_line(specfleet("generate", "Hello", "--server", daemons[1].address, *arguments), code, *words)


def test_wrong_prompts_of_generate(daemons: Fleet) -> None:
    """An empty prompt and one longer than the context: one line, exit code 2, both lengths named."""
    server = ("--server", daemons[1].address)
    one_line(specfleet("generate", "", *server), 2, "prompt", "empty")
    one_line(specfleet("generate", "word " * 4000, *server), 2, "2048", "shorten")


def test_no_server_and_wrong_port(daemons: Fleet) -> None:
    """Nobody there: exit code 3 and the address; an address that is none: exit code 2."""
    nobody = f"127.0.0.1:{free_port()}"
    one_line(specfleet("generate", "Hello", "--server", nobody), 3, nobody)
    one_line(specfleet("generate", "Hello", "--server", "127.0.0.1:99999"), 2, "99999")
    metrics = daemons[0].said("metrics")
    assert specfleet("generate", "Hello", "--server", metrics, "--timeout", "10").returncode in (3, 5)


def test_wrong_models(tmp_path: Path, daemons: Fleet) -> None:
    """A path that does not exist, a folder without a model: exit code 2, one line with the path."""
    missing = str(tmp_path / "nowhere")
    one_line(
        specfleet("verifier", "--model", missing, "--listen", "127.0.0.1:0", "--http", "", "--metrics", ""), 2, missing
    )
    one_line(
        specfleet("verifier", "--model", str(tmp_path), "--listen", "127.0.0.1:0", "--http", "", "--metrics", ""),
        2,
        str(tmp_path),
    )
    verifier = ("--verifier", daemons[0].address, "--listen", "127.0.0.1:0", "--http", "", "--metrics", "")
    one_line(specfleet("drafter", "--model", missing, *verifier), 2, missing)


def test_a_drafter_with_another_tokenizer(tmp_path: Path, daemons: Fleet) -> None:
    """It ends with exit code 4 and one line that names the first id that differs."""
    other = tmp_path / "other"
    shutil.copytree(DRAFT, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    table = tokenizer["model"]["vocab"]
    by_id = {index: token for token, index in table.items()}
    table[by_id[900]], table[by_id[901]] = 901, 900
    (other / "tokenizer.json").chmod(0o644)
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    arguments = ("--verifier", daemons[0].address, "--listen", "127.0.0.1:0", "--http", "", "--metrics", "")
    one_line(specfleet("drafter", "--model", str(other), *arguments), 4, "900", "tokenizer")


def test_unknown_keys_flags_and_policies(tmp_path: Path) -> None:
    """Unknown keys in file and environment, unknown flags and policies: exit code 2, the nearest known name beside it."""
    file = tmp_path / "fleet.toml"
    file.write_text('[verifier]\nmodel = "m"\nspeculatoin = "none"\n')
    one_line(specfleet("verifier", "--config", str(file)), 2, "speculatoin", "speculation", "fleet.toml")
    one_line(specfleet("verifier", "--model", str(TARGET), "--kv-cache-token", "64"), 2, "--kv-cache-token")
    everything = ("verifier", "--model", str(TARGET), "--listen", "127.0.0.1:0", "--http", "", "--metrics", "")
    one_line(specfleet(*everything, "--speculation", "fastest"), 2, "fastest", "fixed")
    one_line(specfleet(*everything, "--speculation", "fixed:0"), 2, "fixed:0", "from 1")


def test_a_port_in_use(daemons: Fleet) -> None:
    """A second daemon on the same port ends with exit code 2 and names it, gRPC and metrics alike."""
    taken, metrics = daemons[0].address, daemons[0].said("metrics")
    arguments = ("verifier", "--model", str(TARGET))
    one_line(specfleet(*arguments, "--listen", taken, "--metrics", ""), 2, taken, "address already in use")
    one_line(specfleet(*arguments, "--listen", "127.0.0.1:0", "--http", "", "--metrics", metrics), 2, metrics)


def test_a_drafter_without_its_verifier(tmp_path: Path) -> None:
    """It gives up after --connect-seconds, with exit code 3 and the address."""
    nobody = f"127.0.0.1:{free_port()}"
    arguments = ("--listen", "127.0.0.1:0", "--http", "", "--metrics", "", "--connect-seconds", "0.5")
    one_line(specfleet("drafter", "--model", "ngram", "--verifier", nobody, *arguments), 3, nobody)


def test_sigterm_lets_running_generations_finish() -> None:
    """A verifier that is told to stop finishes what fits into --drain-seconds and exits with 0."""
    with running(start_verifier("--speculation", "none", "--drain-seconds", "20")) as verifier:
        with Client(verifier.address) as client, client.stream("The king", max_tokens=60, ignore_eos=True) as stream:
            events = iter(stream)
            next(events)
            verifier.process.terminate()
            time.sleep(0.3)
            with Client(verifier.address) as late, pytest.raises(SpecfleetError):
                late.generate("x", max_tokens=1, timeout=2)
            for _ in events:
                pass
            assert 60 == len(stream.token_ids)
        assert 0 == verifier.process.wait(30)


def test_a_small_cache_serves_many_in_turn() -> None:
    """Twelve streams on a KV cache for about three of them all get their text."""
    with running(start_verifier("--speculation", "fixed:4", "--kv-cache-tokens", "256")) as verifier:
        with running(start_drafter(verifier, "--kv-cache-tokens", "128")) as drafter:

            async def run() -> list[tuple[int, ...]]:
                async with AsyncClient(drafter.address, timeout=120) as client:
                    sampling = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
                    replies = await asyncio.gather(
                        *(client.generate(f"{n} little birds sat", sampling) for n in range(12))
                    )
                    alone = [await client.generate(f"{n} little birds sat", sampling) for n in (0, 11)]
                    assert [replies[0].token_ids, replies[11].token_ids] == [one.token_ids for one in alone]
                    return [reply.token_ids for reply in replies]

            assert [40] * 12 == [len(ids) for ids in asyncio.run(run())]
        wait_until_empty(verifier)


def test_importing_the_sdk_brings_nothing_heavy() -> None:
    """`import specfleet` loads neither torch nor grpc; using a client loads grpc but no torch."""
    code = (
        "import sys, specfleet\n"
        "assert not {'torch', 'grpc', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "specfleet.Client('localhost:1').close()\n"
        "assert 'grpc' in sys.modules and not {'torch', 'pydantic', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
