"""A drafter with two verifiers, as real processes: both work, and one may die."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

from specfleet import Client, SamplingParams
from support.daemons import running, start_drafter, start_verifier
from support.pair import TARGET

GREEDY = SamplingParams(max_tokens=6, temperature=0.0)


def test_two_verifiers_share_the_generations_and_one_may_die() -> None:
    """Both serve one text; when one is killed, new generations go on through the other; when it is alone and dies, the
    error names it."""
    with ExitStack() as stack:
        first = stack.enter_context(running(start_verifier("--speculation", "fixed:3")))
        second = start_verifier("--speculation", "fixed:3")
        stack.callback(second.stop, 5)
        second.wait_ready(90)
        more = ("--verifier", second.address, "--routing", "round-robin")
        drafter = stack.enter_context(running(start_drafter(first, *more)))
        assert f"{first.address},{second.address}" == drafter.said("verifier")
        with Client(drafter.address, timeout=60) as client:
            replies = [client.generate("Once upon a time", GREEDY) for _ in range(6)]
            assert [3, 3] == [sum(reply.server.verifier == one.address for reply in replies) for one in (first, second)]
            assert 1 == len({reply.token_ids for reply in replies})
            assert 0 == drafter.metric("specfleet_drafter_verifier_switches_total")

            second.process.kill()
            second.process.wait()
            after = [client.generate("Once upon a time", GREEDY) for _ in range(4)]
            assert {first.address} == {reply.server.verifier for reply in after}
            assert {replies[0].token_ids} == {reply.token_ids for reply in after}
            assert 1 == drafter.metric("specfleet_drafter_verifier_switches_total", reason="unreachable")


def test_verifiers_with_different_vocabularies_are_refused_at_the_start(tmp_path: Path) -> None:
    """The drafter ends with exit code 4 and one line that names the verifier and the first id that differs."""
    other = tmp_path / "other"
    shutil.copytree(TARGET, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    table = tokenizer["model"]["vocab"]
    by_id = {index: token for token, index in table.items()}
    table[by_id[900]], table[by_id[901]] = 901, 900
    (other / "tokenizer.json").chmod(0o644)
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with ExitStack() as stack:
        first = stack.enter_context(running(start_verifier()))
        second = stack.enter_context(running(start_verifier(model=other)))
        drafter = start_drafter(first, "--verifier", second.address)
        assert 4 == drafter.process.wait(60)
        drafter.stop()
        last = drafter.lines[-1]
        assert second.address in last and "900" in last, last
