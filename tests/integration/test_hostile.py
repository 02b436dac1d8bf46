"""Hostile messages to live daemons over gRPC and HTTP, one per call, while eight streams run beside: every one is answered
with a typed error (or is harmless), no stream notices, nothing crashes, nothing is left behind.

SPECFLEET_HOSTILE=100000 sends so many (`make fuzz`).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest

from specfleet import AsyncClient, SamplingParams
from specfleet.v1 import common_pb2, generation_pb2, verification_pb2
from specfleet.wire.channel import MAX_MESSAGE_BYTES
from specfleet.wire.status import DETAILS_KEY
from specfleet.wire.verification import GrpcVerifierConnection
from support import hostile_http
from support.daemons import ANY_PORT, Daemon, fleet, wait_until_empty
from support.hostile import mutated, random_message

MESSAGES = int(os.environ.get("SPECFLEET_HOSTILE", "600"))
ATTACKERS = 8
BESIDE = 8
GREEDY = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
VERIFY = "/specfleet.v1.VerificationService/Verify"
GENERATE = "/specfleet.v1.GenerationService/Generate"
GET_MODEL = "/specfleet.v1.GenerationService/GetModel"
TYPED = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE"}
"""Come with details from us."""
BY_GRPC = {"RESOURCE_EXHAUSTED", "UNIMPLEMENTED"}
"""Too large a message, and methods that nobody has: gRPC's own answers."""
OWN_FAULT = "Internal error from Core"
"""What gRPC's client says over the server's answer when that came while it was still writing."""
Request = verification_pb2.VerifyRequest


@dataclass(frozen=True)
class Attack:
    name: str
    method: str
    frames: tuple[bytes, ...]
    refused: bool = True
    """Whether it must be; else it may do no harm as well."""


def opening(digest: bytes, **fields: object) -> verification_pb2.Open:
    sampling = common_pb2.SamplingParams(max_tokens=6, top_p=1.0)
    values = {"prompt_token_ids": [5, 6, 7], "sampling": sampling, "vocabulary_digest": digest, **fields}
    return verification_pb2.Open(protocol_version=1, can_draft=True, **values)  # type: ignore[arg-type]


def attack(rng: random.Random, digest: bytes) -> Attack:
    """One call of somebody who means harm."""
    good = Request(open=opening(digest)).SerializeToString()
    huge = rng.choice((2**31, 2**32 - 1))
    draft = verification_pb2.Draft(
        position=rng.choice((0, 3, 4, huge)), token_ids=[1, 2], confirmed=rng.choice((0, 3, huge))
    )
    own_id = Request(open=opening(digest, request_id="beside")).SerializeToString()
    foreign = Request(open=opening(digest, prompt_token_ids=[huge])).SerializeToString()
    anything = random_message(generation_pb2.GenerateRequest, rng).SerializeToString()
    kinds: list[Callable[[], Attack]] = [
        lambda: Attack("garbage", VERIFY, (rng.randbytes(rng.randrange(1, 400)),)),
        lambda: Attack("any message first", VERIFY, (random_message(Request, rng).SerializeToString(),), False),
        lambda: Attack("any message second", VERIFY, (good, random_message(Request, rng).SerializeToString()), False),
        lambda: Attack("mutated open", VERIFY, (mutated(good, rng),), False),
        lambda: Attack("mutated second", VERIFY, (good, mutated(Request(draft=draft).SerializeToString(), rng)), False),
        lambda: Attack("truncated", VERIFY, (good[: rng.randrange(1, len(good))],), False),
        lambda: Attack("draft first", VERIFY, (Request(draft=draft).SerializeToString(), good)),
        lambda: Attack("close first", VERIFY, (Request(close=verification_pb2.Close()).SerializeToString(), good)),
        lambda: Attack("wild positions", VERIFY, (good, Request(draft=draft).SerializeToString()), False),
        lambda: Attack("a session's id", VERIFY, (own_id,), False),
        lambda: Attack("foreign tokens", VERIFY, (foreign,)),
        lambda: Attack("foreign vocabulary", VERIFY, (Request(open=opening(b"other")).SerializeToString(),)),
        lambda: Attack("garbage request", GENERATE, (b"\xff" + rng.randbytes(rng.randrange(1, 400)),)),
        lambda: Attack("any request", GENERATE, (anything,), False),
        lambda: Attack("garbage model", GET_MODEL, (b"\xff\xff",)),
        lambda: Attack("no method", VERIFY + "All", (good,)),
    ]  # fmt: skip
    if rng.random() < 0.005:
        return Attack("oversized", rng.choice((VERIFY, GENERATE)), (b"\x00" * (MAX_MESSAGE_BYTES + 1),))
    return rng.choice(kinds)()


async def answer(channel: grpc.aio.Channel, one: Attack) -> str:
    """The status that ended the call; ALIVE for one that got messages, and is then cancelled."""
    while True:
        call = channel.stream_stream(one.method)(timeout=60)
        try:
            for frame in one.frames:
                await call.write(frame)
            await call.done_writing()
            for _ in range(20):
                if await call.read() is grpc.aio.EOF:
                    break
            else:
                call.cancel()
                return "ALIVE"
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        if await call.details() == OWN_FAULT:
            continue
        code = (await call.code()).name
        typed = any(key == DETAILS_KEY for key, _ in await call.trailing_metadata() or ())
        return str(code) if typed or code not in TYPED else f"{code} without details"


async def attackers(
    addresses: list[str], http: list[str], digest: bytes, found: Counter[tuple[str, str]], count: int, seed: int
) -> None:
    """Half of the calls over each."""
    rng = random.Random(seed)
    # Our own channels would not send what is too large.
    unlimited = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
    channels = [grpc.aio.insecure_channel(address, options=unlimited) for address in addresses]
    for _ in range(count // 2):
        await over_http(rng, http, found)
        one = attack(rng, digest)
        # A drafter has no Verify.
        channel = channels[0] if one.method.startswith(VERIFY) else rng.choice(channels)
        code = await answer(channel, one)
        found[one.name, code] += 1
        assert code in TYPED | BY_GRPC | {"ALIVE", "OK"}, f"{one.name}: {code}"
    for channel in channels:
        await channel.close()


async def over_http(rng: random.Random, addresses: list[str], found: Counter[tuple[str, str]]) -> None:
    one = hostile_http.attack(rng)
    code = await hostile_http.answer(rng.choice(addresses), one)
    found[one.name, code] += 1
    harmless = () if one.refused else ("200", hostile_http.LEFT)
    unheard = () if one.refused and one.name not in hostile_http.UNHEARD else (hostile_http.NO_ANSWER,)
    assert code in (*hostile_http.TYPED, *harmless, *unheard), f"{code} for {one.name}: {one.raw[:500]!r}"


async def beside(address: str, over: asyncio.Event) -> int:
    """One stream after the other; all of them have the text of the first. Returns how many."""
    async with AsyncClient(address, retries=0, resume_timeout=0.0, timeout=120) as client:
        first, count = None, 0
        while not over.is_set():
            reply = await client.generate("The old house", GREEDY, request_id="beside")
            first = first or reply.token_ids
            assert first == reply.token_ids and 0 == reply.speculation.resumes
            count += 1
        return count


@pytest.mark.timeout(7200)
def test_hostile_messages_disturb_nobody() -> None:
    """Over gRPC and HTTP, to verifier and drafter alike."""

    async def main(verifier: Daemon, drafter: Daemon) -> Counter[tuple[str, str]]:
        connection = GrpcVerifierConnection(verifier.address)
        digest = (await connection.model()).vocabulary_digest
        await connection.close()
        over, found = asyncio.Event(), Counter[tuple[str, str]]()
        addresses = [verifier.address, drafter.address]
        http = [verifier.said("http"), drafter.said("http")]
        streams = [asyncio.create_task(beside(addresses[n % 2], over)) for n in range(BESIDE)]
        share = -(-MESSAGES // ATTACKERS)
        await asyncio.gather(*(attackers(addresses, http, digest, found, share, seed) for seed in range(ATTACKERS)))
        over.set()
        assert min(await asyncio.gather(*streams)) >= 1
        return found

    policy = ("--speculation", "fixed:4", "--draft-wait-seconds", "0.02")
    with fleet(*policy, "--http", ANY_PORT, drafters=["ngram"]) as (verifier, drafter):
        before = [daemon.rss_bytes for daemon in (verifier, drafter)]
        found = asyncio.run(main(verifier, drafter))
        for (name, code), count in sorted(found.items()):
            print(f"{name:20} {code:22} {count}")  # noqa: T201 (shown with -s, and where it fails)
        wait_until_empty(verifier)
        growth = [(daemon.rss_bytes - size) / 2**20 for daemon, size in zip((verifier, drafter), before, strict=True)]
        assert max(growth) < 150.0, f"{growth} MiB"
        must = {
            "garbage",
            "draft first",
            "close first",
            "foreign tokens",
            "foreign vocabulary",
            "garbage request",
            "garbage model",
        }
        assert not [key for key in found if key[0] in must and key[1] not in TYPED]
        for daemon in (verifier, drafter):
            assert " error " not in daemon.output, daemon.output
