"""Hostile HTTP: bodies of any values in any fields, and requests that are none."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from specfleet.core.errors import SpecfleetError
from specfleet.http import requests
from specfleet.http.fields import parse
from specfleet.http.requests import Asked
from specfleet.wire.channel import MAX_MESSAGE_BYTES
from support.hostile import mutated

SUPPORTED = (
    *(
        "prompt",
        "messages",
        "model",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
    ),
    *(
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "logprobs",
        "top_logprobs",
        "n",
        "stream",
        "stream_options",
        "service_class",
    ),
    *("return_token_ids", "return_speculation", "target_only"),
)
NAMES = (*SUPPORTED, *requests.NEUTRAL, *requests.CHAT_NEUTRAL, *requests.SILENT, "nonsense", "", "\ud800", "x" * 300)
TEXTS = (
    "",
    "x",
    "stop",
    "\x00",
    "\u202e\U0001f600",
    "\ud800",
    "é" * 300,
    "a" * 9_000,
    "{{ 7 * 7 }}",
    "user",
    "text",
    "none",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    0.5,
    1.0,
    -0.0,
    1e308,
    5e-324,
    16,
    17,
    2047,
    2048,
    5000,
    2**31,
    2**32 - 1,
    2**32,
    2**63,
    2**64,
    10**40,
)
MESSAGES: tuple[Any, ...] = (
    [{"role": "user", "content": "hi"}],
    [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text"}]}],
    [{"role": "user", "content": None, "tool_calls": [{}]}],
    [{"role": 5, "content": {}}, None, []],
    [{"role": "user", "content": "hi"}] * 5000,
)
PROMPTS: tuple[Any, ...] = (
    "x",
    ["x"],
    ["x", "y"],
    [1, 2],
    [[1]],
    [[]],
    [-1],
    [2**32],
    [1.0],
    [None],
    [5000] * 3,
    "w " * 9000,
)
READERS: tuple[Callable[[Any, str], Asked], ...] = (requests.completion, requests.chat_completion)
PATHS = ("/v1/completions", "/v1/chat/completions")
TYPED = ("400", "401", "403", "404", "405", "408", "409", "413", "415", "429")
NO_ANSWER = "CLOSED"
LEFT = "LEFT"
UNHEARD = ("http many headers", "http garbage")
"""Refused while they were still being sent: the connection's end may overtake the answer."""


def read(body: bytes) -> list[Asked]:
    """What either API makes of a body; nothing where it is refused with a typed error."""
    found = []
    for reader in READERS:
        try:
            found.append(reader(parse(body), "r"))
        except SpecfleetError:
            continue
    return found


def encoded(values: object) -> bytes:
    return json.dumps(values, ensure_ascii=random.Random(repr(values)[:50]).random() < 0.5).encode(
        errors="surrogatepass"
    )


_SCALARS = st.sampled_from((None, True, False, *TEXTS, *NUMBERS)) | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
BODIES = st.builds(
    lambda base, more: {**base, **more},
    st.sampled_from([*({"prompt": one} for one in PROMPTS), *({"messages": one} for one in MESSAGES), {}]),
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5),
).map(encoded)
"""Bodies: most of them with something to begin from, and anything beside."""


def random_value(rng: random.Random, depth: int = 0) -> Any:
    match rng.randrange(8):
        case 0:
            return rng.choice((None, True, False))
        case 1 | 2:
            return rng.choice(NUMBERS)
        case 3 | 4:
            return rng.choice(TEXTS)
        case 5 if depth < 3:
            return [random_value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 20)))]
        case 6 if depth < 3:
            return {rng.choice(NAMES): random_value(rng, depth + 1) for _ in range(rng.randrange(4))}
        case _:
            return rng.choice((rng.choice(PROMPTS), rng.choice(MESSAGES)))


def random_body(rng: random.Random, **always: Any) -> bytes:
    """The same, without hypothesis: many thousands a second."""
    base: dict[str, Any] = rng.choice(
        (
            {"prompt": "x"},
            {"prompt": rng.choice(PROMPTS)},
            {"messages": MESSAGES[0]},
            {"messages": rng.choice(MESSAGES)},
        )
    )
    more = {rng.choice(NAMES): random_value(rng) for _ in range(rng.choice((0, 0, 1, 1, 2, 5)))}
    return encoded({**base, **more, **always})


@dataclass(frozen=True)
class HttpAttack:
    name: str
    raw: bytes
    refused: bool = True
    """Whether it must be; else it may do no harm as well."""


def request(body: bytes, path: str = PATHS[0], method: str = "POST", **headers: str) -> bytes:
    """A request with this body; headers in place of, or beside, the usual ones."""
    usual = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body))}
    named = usual | {key.replace("_", "-"): value for key, value in headers.items()}
    head = "".join(f"{key}: {value}\r\n" for key, value in named.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def attack(rng: random.Random) -> HttpAttack:
    """One request of somebody who means harm."""
    path = rng.choice(PATHS)
    good = b'{"prompt": "x", "max_tokens": 6}'
    whole = request(good, PATHS[0])
    some = rng.randbytes(rng.randrange(1, 300))
    kinds: list[Callable[[], HttpAttack]] = [
        lambda: HttpAttack("http garbage", b"\x16\x03" + some + b"\r\n\r\n"),
        lambda: HttpAttack("http any body", request(random_body(rng, max_tokens=6), path), False),
        lambda: HttpAttack("http any stream", request(random_body(rng, max_tokens=6, stream=True), path), False),
        lambda: HttpAttack("http wild body", request(random_body(rng), path), False),
        lambda: HttpAttack("http mutated body", request(mutated(good, rng), path), False),
        lambda: HttpAttack("http mutated whole", mutated(whole, rng) + b"\r\n\r\n", False),
        lambda: HttpAttack("http truncated", whole[: rng.randrange(1, len(whole))], False),
        lambda: HttpAttack("http binary body", request(b"\xff" + some, path)),
        lambda: HttpAttack("http nested", request(b"[" * 50_000, path)),
        lambda: HttpAttack("http huge number", request(b'{"prompt": "x", "seed": ' + b"9" * 6000 + b"}", path)),
        lambda: HttpAttack(
            "http wrong length", request(good, path, content_length=rng.choice(("-1", "x", "1e3", "9" * 30)))
        ),
        lambda: HttpAttack("http too long", request(good, path, content_length=str(MAX_MESSAGE_BYTES + 1))),
        lambda: HttpAttack(
            "http bad chunks", request(b"zz\r\n" + some, path, content_length="", transfer_encoding="chunked")
        ),
        lambda: HttpAttack(
            "http two lengths", request(good, path, content_length="5", transfer_encoding="chunked"), False
        ),
        lambda: HttpAttack(
            "http wrong type", request(good, path, content_type=rng.choice(("text/plain", "", "multipart/x")))
        ),
        lambda: HttpAttack("http foreign host", request(good, path, host="evil.example")),
        lambda: HttpAttack("http no host", request(good, path, host="")),
        lambda: HttpAttack("http many headers", request(good, path, x_header="h" * 200_000)),
        lambda: HttpAttack(
            "http wrong path", request(good, rng.choice(("/../etc/passwd", "/v1/%2e%2e", "/%00", "/v1//")))
        ),
        lambda: HttpAttack(
            "http wrong method", request(good, path, rng.choice(("GET", "PUT", "DELETE", "OPTIONS", "BREW")))
        ),
        lambda: HttpAttack("http two", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        lambda: HttpAttack("http pipelined", whole * 3 + b"GARBAGE\r\n\r\n", False),
        lambda: HttpAttack("http upgrade", request(good, path, connection="upgrade", upgrade="websocket"), False),
    ]
    return rng.choice(kinds)()


async def answer(address: str, one: HttpAttack) -> str:
    """The status that came; "CLOSED" for a connection that ended without. Streams are left after some lines, and so is what
    may take its time ("LEFT"): bodies that are not all there, and answers that go on to the context's end."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(one.raw)
        if one.name == "http truncated":
            writer.write_eof()
        async with asyncio.timeout(60 if one.refused else 0.5):
            status = await reader.readline()
            words = status.split()
            if len(words) < 2:
                return NO_ANSWER
            code = words[1].decode()
            for _ in range(12 if code == "200" else 0):
                if not await reader.readline():
                    break
            return code
    except ConnectionError:
        return NO_ANSWER
    except TimeoutError:
        return LEFT
    finally:
        writer.close()
