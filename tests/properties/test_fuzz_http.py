"""Any HTTP body, of any values and any bytes: a request or a typed error, and what is let in here is let in over gRPC, too.

SPECFLEET_EXAMPLES=20000 plays longer (`make fuzz`).
"""

from __future__ import annotations

import os
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specfleet.core.types import SamplingParams
from specfleet.http.errors import body_of
from specfleet.wire import codec
from support.hostile import mutated
from support.hostile_http import BODIES, random_body, read

EXAMPLES = int(os.environ.get("SPECFLEET_EXAMPLES", "400"))
MANY = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


def check(body: bytes) -> int:
    found = read(body)
    for one in found:
        request = one.request
        # The drafter sends it on: what cannot be put on the wire must not get so far.
        sent = codec.generate_request_to_proto(request)
        assert codec.generate_request_from_proto(type(sent).FromString(sent.SerializeToString())) == request
        assert isinstance(request.sampling, SamplingParams)
    return len(found)


@MANY
@given(BODIES)
def test_any_values(body: bytes) -> None:
    """Structure: known fields with any values, edges of ranges above all."""
    check(body)


@MANY
@given(BODIES, st.integers(0, 2**32))
def test_any_bytes(body: bytes, seed: int) -> None:
    """Bodies cut, repeated, flipped and filled up."""
    check(mutated(body, random.Random(seed)))


def test_hostile_bodies_are_not_all_refused() -> None:
    """What is thrown at live daemons gets past the first check often enough to mean something."""
    found = [check(random_body(random.Random(seed))) for seed in range(1000)]
    assert 100 < sum(found) < 900


def test_errors_repeat_no_more_than_they_must() -> None:
    """Whatever stands in a body, the answer to it is short, and valid text."""
    from specfleet.core.errors import SpecfleetError
    from specfleet.http.fields import parse
    from specfleet.http.requests import chat_completion, completion

    for seed in range(1000):
        body = random_body(random.Random(seed))
        for reader in (completion, chat_completion):
            try:
                reader(parse(body), "r")
            except SpecfleetError as error:
                assert len(str(body_of(error)).encode()) < 2500
