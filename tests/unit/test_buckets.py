"""Which shape a step is padded to, and what padding adds; how many pages a device has room for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specfleet.core.errors import ConfigurationError
from specfleet.core.step import PAGE_SIZE
from specfleet.engine.batch import Span
from specfleet.engine.buckets import Bucket, bucket_for, buckets, pad
from specfleet.engine.kv_pool import LayerShape
from specfleet.engine.memory import page_bytes, pages_that_fit


def test_the_smallest_bucket_that_holds_a_step_is_taken() -> None:
    """Decoding and verification of full groups waste nothing; nothing takes less than half of a large bucket."""
    among = buckets(64, 512)

    assert among == sorted(among) and max(among).tokens <= 512
    for sequences in (1, 2, 4, 8, 16, 32, 48, 64):
        for each in (1, 2, 3, 5, 9):
            found = bucket_for(among, sequences, sequences * each)
            assert (found is None) == (sequences * each > 512)
            assert found is None or found.tokens == sequences * each
    for sequences in range(1, 70):
        for tokens in range(sequences, 600, 7):
            found = bucket_for(among, sequences, tokens)
            fitting = [one for one in among if one.tokens >= tokens and one.sequences >= sequences]
            if found is None:
                assert not fitting or 2 * tokens < min(fitting).tokens
            else:
                assert found == min(fitting)
                assert found.tokens <= max(32, 2 * tokens)


def test_padding_adds_one_sequence_that_nobody_hears_of() -> None:
    spans = [Span([1, 2, 3], 20, [4, 5], 2), Span([9], 0, [7], 1)]
    scratch = range(90, 92)

    padded = pad(spans, Bucket(24, 4), scratch)

    assert spans == padded[:2] and 24 == sum(span.size for span in padded)
    assert (0, 0, [*scratch]) == (padded[2].start, padded[2].rows, list(padded[2].pages))
    assert Bucket(24, 4).scratch_pages == len(scratch)
    assert spans == pad(spans, Bucket(4, 2), scratch)


def test_a_pool_takes_what_is_free_less_a_reserve() -> None:
    """64 sequences of 1k of an 8-billion-class model fit many times into what weights leave of 139 GiB."""
    page = page_bytes([LayerShape(16, 64, 64)] * 36, torch.bfloat16)
    free, total = 123 << 30, 139 << 30

    pages = pages_that_fit(free, total, page)

    assert page == PAGE_SIZE * 36 * 2 * 1024 * 2
    assert 0.1 * total <= free - pages * page < 0.1 * total + page
    assert pages * PAGE_SIZE > 10 * 64 * 1024
    random = np.random.default_rng(0)
    for _ in range(100):
        total, page = int(random.integers(1, 1 << 40)), int(random.integers(1, 1 << 30))
        free = int(random.integers(0, total))
        try:
            assert pages_that_fit(free, total, page) * page <= free
        except ConfigurationError:
            assert free - 0.1 * total < page + 1


def test_no_room_is_said() -> None:
    with pytest.raises(ConfigurationError, match=r"1\.0 of 16\.0 GiB are free"):
        pages_that_fit(1 << 30, 16 << 30, 1 << 20)
