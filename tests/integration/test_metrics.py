"""What live daemons export, against the published list of names."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from specfleet import Client, InvalidRequest
from support.daemons import Daemon, fleet

Fleet = tuple[Daemon, ...]
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]

VERIFIER: dict[str, tuple[str, ...]] = {
    "requests_total": ("slo_class", "finish_reason"),
    "rounds_total": (),
    "draft_tokens_total": (),
    "accepted_tokens_total": (),
    "accepted_tokens_per_position_total": ("position",),
    "recovered_tokens_total": (),
    "bonus_tokens_total": (),
    "target_only_tokens_total": (),
    "stale_draft_tokens_total": (),
    "goodput_tokens_total": ("slo_class",),
    "slo_requests_total": ("slo_class", "met"),
    "sessions": ("state",),
    "queue_length": ("kind",),
    "step_seconds_bucket": ("le",),
    "step_predicted_seconds_bucket": ("le",),
    "batch_sequences_bucket": ("le",),
    "batch_tokens_bucket": ("le",),
    "wait_seconds_bucket": ("le",),
    "speculation_length_bucket": ("slo_class", "le"),
    "mode_switches_total": ("from", "to"),
    "gpu_second_price": (),
    "kv_pages": ("state",),
    "prefix_cache_queries_total": (),
    "prefix_cache_hits_total": (),
    "evictions_total": ("reason",),
    "resumes_total": ("outcome",),
    "rejected_total": ("reason",),
    "controller_seconds_bucket": ("le",),
    "fairness_jain": (),
    "build_info": ("version",),
}
DRAFTER: dict[str, tuple[str, ...]] = {
    "requests_total": ("finish_reason",),
    "drafted_tokens_total": ("speculator",),
    "discarded_tokens_total": ("reason",),
    "drafting_seconds_total": ("outcome",),
    "draft_step_seconds_bucket": ("le",),
    "round_trip_seconds_bucket": ("le",),
    "network_seconds_bucket": ("le",),
    "time_to_first_token_seconds_bucket": ("le",),
    "time_per_output_token_seconds_bucket": ("le",),
    "ahead_tokens_total": ("outcome",),
    "mode_seconds_total": ("mode",),
    "early_stops_total": ("outcome",),
    "verifier_switches_total": ("reason",),
    "sessions": (),
    "build_info": ("version",),
}
CALLS: dict[str, tuple[str, ...]] = {
    "grpc_server_started_total": ("grpc_service", "grpc_method"),
    "grpc_server_handled_total": ("grpc_service", "grpc_method", "grpc_code"),
    "grpc_server_handling_seconds_bucket": ("grpc_service", "grpc_method", "le"),
}
CALLS_OF_REFLECTION = "grpc.reflection.v1alpha.ServerReflection"


@pytest.fixture(scope="module")
def daemons() -> Iterator[Fleet]:
    """A verifier that knows a class and speaks vLLM's names, and two drafters."""
    with fleet("--vllm-metrics", "--service-class", "chat:ttft=60,tpot=60", "--speculation", "fixed:3") as found:
        yield found


@pytest.fixture(scope="module")
def fresh(daemons: Fleet) -> list[Series]:
    """What each exported before it was asked for anything."""
    return [scrape(daemon) for daemon in daemons]


def scrape(daemon: Daemon) -> Series:
    with urllib.request.urlopen(f"http://{daemon.said('metrics')}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labels(found: Series, name: str) -> set[str]:
    """Labels of the series of that name, which there must be."""
    rows = [row for key, row in found if key == name]
    assert rows, f"{name} is not exported"
    return {label for row in rows for label, _ in row}


def test_every_published_name_is_there_before_the_first_request(fresh: list[Series]) -> None:
    """With its labels, and counters at zero. What drafters ask of a verifier when they start has been counted already."""
    for prefix, names, found in (
        ("specfleet_verifier_", VERIFIER, fresh[0]),
        ("specfleet_drafter_", DRAFTER, fresh[1]),
        ("specfleet_drafter_", DRAFTER, fresh[2]),
    ):
        for name, expected in (*((f"{prefix}{key}", value) for key, value in names.items()), *CALLS.items()):
            assert set(expected) == labels(found, name), name
        counted = {
            key: value for key, value in found.items() if key[0].startswith(prefix) and key[0].endswith("_total")
        }
        assert {0.0} == set(counted.values()), counted


def test_latencies_begin_at_half_a_millisecond(fresh: list[Series]) -> None:
    """But the controller's, which is quicker."""
    found = {**fresh[0], **fresh[1]}
    names = {name for name, _ in found if name.endswith("_seconds_bucket")} - {
        "specfleet_verifier_controller_seconds_bucket"
    }
    for name in names:
        bounds = {float(dict(row)["le"]) for key, row in found if key == name}
        assert 0.0005 == min(bounds), name


def test_traffic_makes_no_new_series(daemons: Fleet, fresh: list[Series]) -> None:
    """Requests of a class, without one, refused ones and cancelled ones rise from zero: no label comes from a request."""
    for server in daemons:
        with Client(server.address, timeout=60) as client:
            client.generate("Once upon a time", max_tokens=24, temperature=0.0)
            client.generate("Once upon a time", max_tokens=24, seed=1, service_class="chat")
            client.generate("Once upon a time", max_tokens=8)
            with pytest.raises(InvalidRequest):
                client.generate("Once upon a time", max_tokens=24, service_class="nobody-has-this")
            with client.stream("Once upon a time", max_tokens=200) as stream:
                next(iter(stream))
    for before, daemon in zip(fresh, daemons, strict=True):
        after = {key for key in scrape(daemon) if CALLS_OF_REFLECTION not in str(key)}
        assert set() == after - set(before)
    assert daemons[0].metric("specfleet_verifier_rejected_total", reason="invalid_argument") > 0
    assert daemons[0].metric("specfleet_verifier_requests_total", slo_class="chat", finish_reason="length") == 3
    assert all(drafter.metric("specfleet_drafter_network_seconds_count") > 0 for drafter in daemons[1:])


def test_vllms_names_agree_with_ours(daemons: Fleet) -> None:
    """On a live verifier, after some rounds."""
    verifier = daemons[0]
    with Client(daemons[1].address, timeout=60) as client:
        client.generate("Once upon a time", max_tokens=24, temperature=0.0)
    pairs = {
        "num_drafts_total": "rounds_total",
        "num_draft_tokens_total": "draft_tokens_total",
        "num_accepted_tokens_total": "accepted_tokens_total",
        "num_accepted_tokens_per_pos_total": "accepted_tokens_per_position_total",
    }
    for theirs, ours in pairs.items():
        counted = verifier.metric(f"specfleet_verifier_{ours}")
        assert counted > 0
        assert counted == verifier.metric(f"vllm:spec_decode_{theirs}", model_name="tiny-target")
