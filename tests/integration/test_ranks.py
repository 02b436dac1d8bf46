"""A verifier over two processes, started by torchrun: rank 0 serves, the other follows, and both end together."""

from __future__ import annotations

import sys

import psutil

from specfleet import Client, SamplingParams
from support.daemons import ANY_PORT, Daemon
from support.pair import TARGET, Reference

LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python")
PROMPT = "Once upon a time, there was a little fox who"


def test_two_ranks_serve_the_targets_own_text_and_end_with_rank_0() -> None:
    """Greedy and seeded text of a target shared by two processes; SIGTERM to rank 0 drains it and lets the other go."""
    where = ("--listen", ANY_PORT, "--metrics", "", "--threads", "1", "--kv-cache-tokens", "2048")
    daemon = Daemon("verifier", "--model", str(TARGET), *where, prefix=LAUNCH)
    try:
        daemon.wait_ready(200)
        seeded = SamplingParams(max_tokens=24, temperature=0.9, top_p=0.95, seed=3)
        with Client(daemon.address, timeout=100) as client:
            found = [
                client.generate(PROMPT, SamplingParams(max_tokens=24, temperature=0.0)),
                client.generate(PROMPT, seeded),
            ]
        reference = Reference()
        expected = [reference.greedy(PROMPT, 24), reference.seeded(PROMPT, 24, 0.9, 0.95, 3)]
        assert expected == [list(reply.token_ids) for reply in found]

        ranks = [one for one in psutil.Process(daemon.process.pid).children() if "verifier" in one.cmdline()]
        assert 2 == len(ranks)
        next(one for one in ranks if "0" == one.environ()["RANK"]).terminate()
        assert 0 == daemon.process.wait(60), daemon.output
    finally:
        daemon.stop(5)
