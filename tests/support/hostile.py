"""What somebody may send who means harm, or whose software is broken: any values in any fields, and any bytes."""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_EDGES_32 = (0, 1, 2, 7, 63, 64, 255, 256, 257, 1199, 1200, 4096, 2**31 - 1, 2**31, 2**32 - 1)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e30, 3601.0, float("inf"), float("-inf"), float("nan"))
_TEXTS = (
    "",
    "x",
    "stop",
    "\x00",
    "\u202e\U0001f600",
    "é" * 300,
    "a" * 9_000,
    "{{ 7 * 7 }}",
    "%s%n",
    "../../etc/passwd",
)
_BYTES = (b"", b"\x00", b"\xff" * 65, b"\x12\x03\x0a\xff\xff", b"x" * 5000)


def _scalar(field: FieldDescriptor) -> tuple[Any, ...]:
    kind = field.type
    if kind in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return _FLOATS
    if kind == FieldDescriptor.TYPE_BOOL:
        return (False, True)
    if kind == FieldDescriptor.TYPE_STRING:
        return _TEXTS
    if kind == FieldDescriptor.TYPE_BYTES:
        return _BYTES
    if kind in (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64):
        return (*_EDGES_32, 2**63, 2**64 - 1)
    if kind == FieldDescriptor.TYPE_INT64:
        return (*_EDGES_32, -1, -(2**63), 2**63 - 1)
    if kind in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_ENUM):
        return (0, 1, 2, 3, 4, 99, -1, 2**31 - 1, -(2**31))
    return _EDGES_32


def messages(kind: type[Message]) -> st.SearchStrategy[Any]:
    """Messages of this type with any of their fields set to anything, edges of ranges above all."""
    return _built(kind.DESCRIPTOR, 0)


def _built(descriptor: Descriptor, depth: int) -> st.SearchStrategy[Any]:
    fields = {}
    for field in descriptor.fields:
        if field.message_type is None:
            one: st.SearchStrategy[Any] = st.sampled_from(_scalar(field))
        elif depth < 4:
            one = _built(field.message_type, depth + 1)
        else:
            continue
        fields[field.name] = st.lists(one, max_size=5) if field.is_repeated else one
    cls: Any = GetMessageClass(descriptor)
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: cls(**values))


def random_message(kind: type[Message], rng: random.Random, depth: int = 0) -> Any:
    """The same, without hypothesis: many thousands a second."""
    message: Any = kind()
    for field in kind.DESCRIPTOR.fields:
        if rng.random() < 0.4:
            continue
        count = rng.choice((0, 1, 2, 5, 300)) if field.is_repeated else 1
        if field.message_type is not None:
            if depth < 4:
                inner: Any = GetMessageClass(field.message_type)
                values = [random_message(inner, rng, depth + 1) for _ in range(min(count, 5))]
                if field.is_repeated:
                    getattr(message, field.name).extend(values)
                else:
                    getattr(message, field.name).CopyFrom(values[0])
            continue
        numeric = field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
        values = [rng.choice(_scalar(field)) for _ in range(count if numeric else min(count, 5))]
        if field.is_repeated:
            getattr(message, field.name).extend(values)
        else:
            setattr(message, field.name, values[0])
    return message


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """Bytes that were a message: cut, repeated, flipped, filled up."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                del data[at:]
            case 1:
                data[at:at] = data[: rng.randrange(1, 50)]
            case 2 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 3:
                data[at:at] = rng.randbytes(rng.randrange(1, 20))
            case _:
                del data[at : at + rng.randrange(1, 10)]
    return bytes(data)
