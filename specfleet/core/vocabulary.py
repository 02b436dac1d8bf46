"""Do two models mean the same by a token id? A digest to compare, and checksums to find the first id that differs."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CHECKSUM_BYTES = 2


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """An id -> token table with its special ids.

    `tokens[i]` is the token's text as the tokenizer stores it; an id nobody uses is "". The unused tail that models pad
    their embedding with is not part of the table, so it does not count.
    """

    tokens: tuple[str, ...]
    special_ids: tuple[int, ...]

    @classmethod
    def of(cls, table: Mapping[str, int], special_ids: Sequence[int]) -> Vocabulary:
        """From a tokenizer's token -> id table."""
        tokens = [""] * (max(table.values(), default=-1) + 1)
        for token, index in table.items():
            tokens[index] = token
        return cls(tuple(tokens), tuple(sorted(special_ids)))

    def digest(self) -> bytes:
        """32 bytes over ids, tokens and special ids."""
        state = hashlib.sha256()
        for index, token in enumerate(self.tokens):
            if token:
                state.update(f"{index}\0{token}\0".encode())
        state.update(",".join(map(str, self.special_ids)).encode())
        return state.digest()

    def checksums(self) -> bytes:
        """CHECKSUM_BYTES per id, in order: enough to name the first id that differs, once, after a refusal."""
        marks = set(self.special_ids)
        return b"".join(
            (zlib.crc32(f"{token}\0{index in marks}".encode()) & 0xFFFF).to_bytes(CHECKSUM_BYTES, "little")
            for index, token in enumerate(self.tokens)
        )

    def first_difference(self, checksums: bytes) -> int | None:
        """The first id whose token (or being special) differs from the peer's, None if all agree."""
        own = self.checksums()
        for at in range(0, max(len(own), len(checksums)), CHECKSUM_BYTES):
            if own[at : at + CHECKSUM_BYTES] != checksums[at : at + CHECKSUM_BYTES]:
                return at // CHECKSUM_BYTES
        return None
