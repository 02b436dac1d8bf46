"""What a request may be in size and number, looked at before anything is made of it. Ranges of values are checked where the
values live (SamplingParams, GenerationRequest, codec); what depends on the served model, by who serves it."""

from __future__ import annotations

from collections.abc import Sized

from specfleet.core.errors import InvalidRequest
from specfleet.v1 import common_pb2, generation_pb2, verification_pb2

MAX_TOKENS_GIVEN = 2**20
"""Token ids in a prompt, or of output that a generation goes on behind."""
MAX_NAME = 256
"""Characters in the name of a model or of a service class."""
MAX_DIGEST = 64
"""Bytes of a vocabulary's fingerprint."""
MAX_CHAT_MESSAGES = 4096
MAX_ROLE = 64
"""Characters in a chat message's role."""
MAX_STOP = 256
"""Characters in a stop string."""
MAX_STOP_TOKENS = 1024


def check_open(proto: verification_pb2.Open) -> None:
    """Raises InvalidRequest naming the field, its size and the limit."""
    check("prompt_token_ids", proto.prompt_token_ids, MAX_TOKENS_GIVEN, "tokens")
    check("output_token_ids", proto.output_token_ids, MAX_TOKENS_GIVEN, "tokens")
    check("model", proto.model, MAX_NAME, "characters")
    check("service_class", proto.service_class, MAX_NAME, "characters")
    check("vocabulary_digest", proto.vocabulary_digest, MAX_DIGEST, "bytes")
    check_sampling(proto.sampling)


def check_generate(proto: generation_pb2.GenerateRequest) -> None:
    """Raises InvalidRequest naming the field, its size and the limit."""
    check("prompt_token_ids", proto.prompt_token_ids.token_ids, MAX_TOKENS_GIVEN, "tokens")
    check("output_token_ids", proto.output_token_ids, MAX_TOKENS_GIVEN, "tokens")
    check("model", proto.model, MAX_NAME, "characters")
    check("service_class", proto.service_class, MAX_NAME, "characters")
    check("chat", proto.chat.messages, MAX_CHAT_MESSAGES, "messages")
    for message in proto.chat.messages:
        check("role", message.role, MAX_ROLE, "characters")
    check_sampling(proto.sampling)


def check_sampling(proto: common_pb2.SamplingParams) -> None:
    """Raises InvalidRequest naming the field, its size and the limit."""
    for text in proto.stop:
        check("stop", text, MAX_STOP, "characters")
    check("stop_token_ids", proto.stop_token_ids, MAX_STOP_TOKENS, "tokens")


def check(name: str, value: Sized, limit: int, unit: str) -> None:
    """Raises InvalidRequest naming the field, its size and the limit."""
    if len(value) > limit:
        raise InvalidRequest.field(name, f"has {len(value)} {unit}, at most {limit}")
