"""Steps of every shape as steps of a few: which shapes, which one a step gets, and how it is filled up. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from specfleet.core.step import PAGE_SIZE
from specfleet.engine.batch import Span

TOKENS_PER_SEQUENCE = (1, 2, 3, 5, 9)
"""Decoding, and verification of short and of long drafts."""
_SEQUENCES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)


class Bucket(NamedTuple):
    """A shape that steps of up to so many tokens, of up to so many sequences, are filled up to."""

    tokens: int
    sequences: int

    @property
    def queries(self) -> int:
        """Tokens of a sequence on average: what kernels are made for. Any sequence may have more."""
        return -(-self.tokens // self.sequences)

    @property
    def scratch_pages(self) -> int:
        """That padding may need."""
        return -(-self.tokens // PAGE_SIZE)


def buckets(most_sequences: int, most_tokens: int) -> list[Bucket]:
    """Shapes for decoding and verification, smallest first: sequences up to `most_sequences`, tokens up to `most_tokens`."""
    counts = [*(count for count in _SEQUENCES if count < most_sequences), most_sequences]
    found = {Bucket(count * each, count) for count in counts for each in TOKENS_PER_SEQUENCE}
    return sorted(bucket for bucket in found if bucket.tokens <= most_tokens)


def bucket_for(among: Sequence[Bucket], sequences: int, tokens: int) -> Bucket | None:
    """The smallest that holds the step, of those `among` (smallest first); None if none does. A step that fills less than half
    of it gets none, too: padding would then cost more than it saves."""
    for bucket in among:
        if bucket.tokens >= tokens and bucket.sequences >= sequences:
            return bucket if 2 * tokens >= bucket.tokens or bucket.tokens <= _SMALL else None
    return None


_SMALL = 32
"""Tokens that cost no more than one: weights are read all the same."""


def pad(spans: Sequence[Span], bucket: Bucket, scratch: Sequence[int]) -> list[Span]:
    """The step with exactly the bucket's tokens: what is missing is one more sequence, last, that wants no logits and writes
    to `scratch` pages (at least `bucket.scratch_pages`), which nobody else holds."""
    room = bucket.tokens - sum(span.size for span in spans)
    return [*spans, Span([0] * room, 0, scratch, 0)] if room else list(spans)
