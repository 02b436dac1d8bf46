"""Metrics by the names that dashboards rely on, the port they are scraped from, and log lines."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import urllib.request
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from specfleet.core.errors import ConfigurationError, Overloaded, SpecfleetError
from specfleet.core.protocol import Close, Draft, ServerStream, Shadow
from specfleet.core.types import FinishReason, Mode
from specfleet.observability import log as logs
from specfleet.observability.drafter import DrafterMetrics
from specfleet.observability.grpc_server import GrpcServerMetrics
from specfleet.observability.registry import MetricsServer
from specfleet.observability.verifier import POSITIONS, VerifierGauges, VerifierMetrics
from specfleet.observability.vllm import VllmNames
from specfleet.wire.verification import GrpcVerifierConnection
from support.messages import verdict
from support.metrics import Counts
from support.wire import Backend, serving

REASONS = {"stop", "length", "cancelled", "error"}
MODES = {"local", "stream", "round"}
SERVICE = "specfleet.v1.VerificationService"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def series(registry: CollectorRegistry, name: str) -> dict[tuple[str, ...], float]:
    """Values of a sample by its labels' values; {} where there is none."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def labels(registry: CollectorRegistry, name: str) -> set[str]:
    return {
        label
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
        for label in sample.labels
    }


def value(registry: CollectorRegistry, name: str, *by: str) -> float:
    return series(registry, name)[by]


# --- names -----------------------------------------------------------------------------------------------------------

VERIFIER_COUNTERS: dict[str, tuple[set[str], int]] = {
    "requests_total": ({"slo_class", "finish_reason"}, 4),
    "rounds_total": (set(), 1),
    "draft_tokens_total": (set(), 1),
    "accepted_tokens_total": (set(), 1),
    "accepted_tokens_per_position_total": ({"position"}, POSITIONS),
    "recovered_tokens_total": (set(), 1),
    "bonus_tokens_total": (set(), 1),
    "target_only_tokens_total": (set(), 1),
    "stale_draft_tokens_total": (set(), 1),
    "step_target_only_seconds_total": (set(), 1),
    "queued_seconds_total": (set(), 1),
    "mode_switches_total": ({"from", "to"}, 6),
    "resumes_total": ({"outcome"}, 2),
    "rejected_total": ({"reason"}, 7),
}
VERIFIER_HISTOGRAMS = {
    "step_seconds": set(),
    "batch_sequences": set(),
    "batch_tokens": set(),
    "wait_seconds": set(),
    "speculation_length": {"slo_class"},
}
DRAFTER_COUNTERS: dict[str, tuple[set[str], int]] = {
    "requests_total": ({"finish_reason"}, 4),
    "drafted_tokens_total": ({"speculator"}, 4),
    "discarded_tokens_total": ({"reason"}, 3),
    "settled_tokens_total": ({"fate"}, 5),
    "drafting_seconds_total": ({"outcome"}, 2),
    "ahead_tokens_total": ({"outcome"}, 2),
    "early_stops_total": ({"outcome"}, 2),
    "mode_seconds_total": ({"mode"}, 3),
    "verifier_switches_total": ({"reason"}, 2),
    "resumes_total": (set(), 1),
}
DRAFTER_HISTOGRAMS = (
    "draft_step_seconds",
    "round_trip_seconds",
    "network_seconds",
    "time_to_first_token_seconds",
    "time_per_output_token_seconds",
)


@pytest.mark.parametrize(("name", "expected"), VERIFIER_COUNTERS.items())
def test_verifier_counters_are_there_from_the_start(
    registry: CollectorRegistry, name: str, expected: tuple[set[str], int]
) -> None:
    """Every published counter has its labels, and all its series at zero before anything happened."""
    VerifierMetrics(registry)
    found = series(registry, f"specfleet_verifier_{name}")
    assert expected == (labels(registry, f"specfleet_verifier_{name}"), len(found))
    assert {0.0} == set(found.values())


@pytest.mark.parametrize(("name", "expected"), VERIFIER_HISTOGRAMS.items())
def test_verifier_histograms_are_there_from_the_start(
    registry: CollectorRegistry, name: str, expected: set[str]
) -> None:
    """So are the histograms, with buckets."""
    VerifierMetrics(registry)
    full = f"specfleet_verifier_{name}"
    assert {0.0} == set(series(registry, f"{full}_count").values()) == set(series(registry, f"{full}_sum").values())
    assert expected | {"le"} == labels(registry, f"{full}_bucket")


@pytest.mark.parametrize(("name", "expected"), DRAFTER_COUNTERS.items())
def test_drafter_counters_are_there_from_the_start(
    registry: CollectorRegistry, name: str, expected: tuple[set[str], int]
) -> None:
    """The same for the drafter."""
    DrafterMetrics(registry)
    found = series(registry, f"specfleet_drafter_{name}")
    assert expected == (labels(registry, f"specfleet_drafter_{name}"), len(found))
    assert {0.0} == set(found.values())


@pytest.mark.parametrize("name", DRAFTER_HISTOGRAMS)
def test_drafter_histograms_are_there_from_the_start(registry: CollectorRegistry, name: str) -> None:
    """And its latencies, whose buckets begin at 0.5 ms."""
    DrafterMetrics(registry)
    full = f"specfleet_drafter_{name}"
    assert {(): 0.0} == series(registry, f"{full}_count")
    assert 0.0005 == min(float(le) for (le,) in series(registry, f"{full}_bucket"))


def test_labels_take_the_published_values(registry: CollectorRegistry) -> None:
    """Finish reasons and modes are spelled as in replies."""
    VerifierMetrics(registry)
    DrafterMetrics(registry)
    assert REASONS == {reason for _, reason in series(registry, "specfleet_verifier_requests_total")}
    assert {(reason,) for reason in REASONS} == set(series(registry, "specfleet_drafter_requests_total"))
    assert {(mode,) for mode in MODES} == set(series(registry, "specfleet_drafter_mode_seconds_total"))
    switches = {(old, new) for old in MODES for new in MODES if old != new}
    assert switches == set(series(registry, "specfleet_verifier_mode_switches_total"))
    assert {("model",), ("ngram",), ("hybrid",), ("runner-up",)} == set(
        series(registry, "specfleet_drafter_drafted_tokens_total")
    )


def test_gauges_are_read_when_scraped(registry: CollectorRegistry) -> None:
    """What the verifier knows at that moment, by state and kind."""
    registry.register(VerifierGauges(Counts()))
    assert {("prefill",): 1.0, ("generate",): 2.0} == series(registry, "specfleet_verifier_sessions")
    assert {("prefill",): 1.0} == series(registry, "specfleet_verifier_queue_length")
    assert {("used",): 3.0, ("cached",): 4.0, ("free",): 5.0} == series(registry, "specfleet_verifier_kv_pages")
    assert 100.0 == value(registry, "specfleet_verifier_prefix_cache_queries_total")
    assert 40.0 == value(registry, "specfleet_verifier_prefix_cache_hits_total")
    assert {("preempted",): 6.0, ("cache",): 7.0} == series(registry, "specfleet_verifier_evictions_total")
    assert 12.5 == value(registry, "specfleet_verifier_gpu_second_price")
    assert 0.75 == value(registry, "specfleet_verifier_fairness_jain")
    named = (
        {"state"} == labels(registry, "specfleet_verifier_sessions") == labels(registry, "specfleet_verifier_kv_pages")
    )
    assert named and {"kind"} == labels(registry, "specfleet_verifier_queue_length")


@pytest.mark.parametrize(("prefix", "metrics"), [("verifier", VerifierMetrics), ("drafter", DrafterMetrics)])
def test_build_info_names_the_version(registry: CollectorRegistry, prefix: str, metrics: type) -> None:
    """Constant 1, the version as a label."""
    metrics(registry)
    assert [1.0] == list(series(registry, f"specfleet_{prefix}_build_info").values())
    assert {"version"} == labels(registry, f"specfleet_{prefix}_build_info")


def test_both_daemons_share_a_registry(registry: CollectorRegistry) -> None:
    """No name is used twice, so that one process may export all."""
    VerifierMetrics(registry)
    DrafterMetrics(registry)
    GrpcServerMetrics(registry)
    registry.register(VerifierGauges(Counts()))


# --- counting --------------------------------------------------------------------------------------------------------

VERDICTS = st.lists(
    st.integers(0, 40).flatmap(
        lambda drafted: st.tuples(st.just(drafted), st.integers(0, drafted), st.booleans(), st.sampled_from(Mode))
    ),
    max_size=20,
)


@settings(max_examples=40, deadline=None)
@given(VERDICTS)
def test_verdicts_add_up(verdicts: list[tuple[int, int, bool, Mode]]) -> None:
    """Committed = accepted + recovered + bonus + target-only; accepted = the sum over positions; a round per draft."""
    registry = CollectorRegistry()
    metrics = VerifierMetrics(registry)
    committed = 0
    for drafted, accepted, cut, mode in verdicts:
        tokens = accepted if cut and accepted else accepted + 1
        metrics.verdict("", verdict(mode, drafted, accepted, tokens), 0.001)
        committed += tokens

    def total(name: str) -> float:
        return sum(series(registry, f"specfleet_verifier_{name}_total").values())

    kinds = ("accepted_tokens", "recovered_tokens", "bonus_tokens", "target_only_tokens")
    assert committed == sum(map(total, kinds))
    assert sum(accepted for _, accepted, _, _ in verdicts) == total("accepted_tokens")
    assert total("accepted_tokens") == total("accepted_tokens_per_position")
    assert sum(drafted for drafted, _, _, _ in verdicts) == total("draft_tokens")
    assert sum(drafted > 0 for drafted, _, _, _ in verdicts) == total("rounds")
    uncut = [(drafted, accepted) for drafted, accepted, cut, _ in verdicts if drafted and not (cut and accepted)]
    assert sum(drafted == accepted for drafted, accepted in uncut) == total("bonus_tokens")
    assert sum(drafted > accepted for drafted, accepted in uncut) == total("recovered_tokens")
    assert len(verdicts) == value(registry, "specfleet_verifier_wait_seconds_count")


def test_positions_count_from_the_front_and_the_last_takes_the_rest(registry: CollectorRegistry) -> None:
    """Of a draft with two accepted, places 0 and 1; labels stay bounded however long a draft is."""
    metrics = VerifierMetrics(registry)
    metrics.verdict("", verdict(Mode.ROUND, 4, 2, 3), 0.0)
    name = "specfleet_verifier_accepted_tokens_per_position_total"
    assert [1.0, 1.0, 0.0] == [value(registry, name, str(place)) for place in range(3)]
    metrics.verdict("", verdict(Mode.ROUND, POSITIONS + 5, POSITIONS + 5, POSITIONS + 6), 0.0)
    assert POSITIONS == len(series(registry, name))
    assert 6.0 == value(registry, name, str(POSITIONS - 1))


def test_the_verifiers_events_are_counted(registry: CollectorRegistry) -> None:
    """Each event reaches its own series and no other."""
    metrics = VerifierMetrics(registry)
    metrics.session_opened(resumed=False)
    metrics.session_opened(resumed=True)
    metrics.session_rejected("overloaded", resumed=False)
    metrics.session_rejected("unavailable", resumed=True)
    metrics.session_finished("", FinishReason.STOP)
    metrics.step(0.004, 0.005, 3, 40)
    metrics.alone(0.003, 0.5)
    metrics.granted("", Mode.LOCAL, Mode.ROUND, 4)
    metrics.granted("", Mode.ROUND, Mode.ROUND, 4)
    metrics.stale(5)
    metrics.served("", 30, met=True)
    metrics.served("", 20, met=False)
    metrics.ignored("draft_seconds")
    metrics.decided(0.0001)
    one = "specfleet_verifier_"
    assert 30.0 == value(registry, f"{one}goodput_tokens_total", "")
    assert (1.0, 1.0) == tuple(value(registry, f"{one}slo_requests_total", "", met) for met in ("true", "false"))
    assert 1.0 == value(registry, f"{one}ignored_reports_total", "draft_seconds")
    assert 1.0 == value(registry, f"{one}controller_seconds_count")
    assert (1.0, 1.0) == tuple(value(registry, f"{one}resumes_total", how) for how in ("accepted", "refused"))
    assert 1.0 == value(registry, f"{one}rejected_total", "overloaded")
    assert 1.0 == sum(series(registry, f"{one}requests_total").values())
    assert {"slo_class": "", "finish_reason": "stop"} in [
        sample.labels
        for family in registry.collect()
        for sample in family.samples
        if sample.name == f"{one}requests_total" and sample.value == 1.0
    ]
    assert (1.0, 0.004) == (value(registry, f"{one}step_seconds_count"), value(registry, f"{one}step_seconds_sum"))
    assert (3.0, 40.0) == (
        value(registry, f"{one}batch_sequences_sum"),
        value(registry, f"{one}batch_tokens_sum"),
    )
    assert 0.25 == pytest.approx(value(registry, f"{one}step_relative_error_total"))
    assert (0.003, 0.5) == (
        value(registry, f"{one}step_target_only_seconds_total"),
        value(registry, f"{one}queued_seconds_total"),
    )
    assert 8.0 == value(registry, f"{one}speculation_length_sum", "")
    assert 1.0 == value(registry, f"{one}mode_switches_total", "local", "round")
    assert 1.0 == sum(series(registry, f"{one}mode_switches_total").values())
    assert 5.0 == value(registry, f"{one}stale_draft_tokens_total")


def test_the_drafters_events_are_counted(registry: CollectorRegistry) -> None:
    """Each event reaches its own series; times per token are shared out evenly."""
    metrics = DrafterMetrics(registry)
    metrics.session_opened()
    metrics.session_opened()
    metrics.session_finished(FinishReason.LENGTH)
    metrics.drafted("model", 4, 0.02)
    metrics.drafted("ngram", 0, 0.001)
    metrics.discarded("contradicted", 3)
    metrics.fate("accepted", 5, 0.5, True)
    metrics.fate("refused", 2, 0.25, False)
    metrics.ahead(3, True)
    metrics.early_stop(True)
    metrics.calibration(0.04)
    metrics.round_trip(0.03)
    metrics.network(0.02)
    metrics.mode_time(Mode.STREAM, 1.5)
    metrics.first_token(0.2)
    metrics.tokens(3, 0.06)
    metrics.verifier_switched("unreachable")
    metrics.resumed()
    one = "specfleet_drafter_"
    assert 1.0 == value(registry, f"{one}sessions")
    assert 1.0 == value(registry, f"{one}requests_total", "length")
    assert (4.0, 0.0) == tuple(value(registry, f"{one}drafted_tokens_total", name) for name in ("model", "ngram"))
    assert 1.0 == value(registry, f"{one}draft_step_seconds_count")
    assert 0.005 == pytest.approx(value(registry, f"{one}draft_step_seconds_sum"))
    assert 3.0 == value(registry, f"{one}discarded_tokens_total", "contradicted")
    assert (5.0, 2.0) == tuple(value(registry, f"{one}settled_tokens_total", name) for name in ("accepted", "refused"))
    assert (0.5, 0.25) == tuple(value(registry, f"{one}drafting_seconds_total", name) for name in ("used", "wasted"))
    assert (3.0, 0.0) == tuple(value(registry, f"{one}ahead_tokens_total", name) for name in ("used", "wasted"))
    assert (1.0, 0.0) == tuple(value(registry, f"{one}early_stops_total", name) for name in ("right", "premature"))
    assert 0.04 == value(registry, f"{one}calibration_error")
    assert 0.03 == value(registry, f"{one}round_trip_seconds_sum")
    assert 0.02 == value(registry, f"{one}network_seconds_sum")
    assert 1.5 == value(registry, f"{one}mode_seconds_total", "stream")
    assert 0.2 == value(registry, f"{one}time_to_first_token_seconds_sum")
    assert 3.0 == value(registry, f"{one}time_per_output_token_seconds_count")
    assert 0.06 == pytest.approx(value(registry, f"{one}time_per_output_token_seconds_sum"))
    assert 1.0 == value(registry, f"{one}verifier_switches_total", "unreachable")
    assert 1.0 == value(registry, f"{one}resumes_total")


# --- the gRPC server -------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_calls_are_counted_by_how_they_ended(registry: CollectorRegistry) -> None:
    """OK, a refusal, our own fault and a caller that gave up, for unary calls and for streams."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def serve(stream: ServerStream) -> None:
        match await stream.receive():
            case Shadow():
                raise Overloaded("full")
            case Draft():
                begun.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()

    backend = Backend(serve, files={"a": b"x", "b": b"y"})
    async with serving(backend, GrpcServerMetrics(registry)) as (_, address):
        connection = GrpcVerifierConnection(address)
        await connection.model()
        await connection.tokenizer_files()
        for fault in (Overloaded("full"), RuntimeError("inner")):
            backend.fault = fault
            for call in (connection.model, connection.tokenizer_files):
                with pytest.raises(SpecfleetError):
                    await call()
        stream = await connection.verify()
        await stream.send(Close())
        assert await stream.receive() is None
        stream = await connection.verify()
        await stream.send(Shadow(position=0, tested=0, accepted=0))
        with pytest.raises(Overloaded):
            await stream.receive()
        stream = await connection.verify()
        await stream.send(Draft(position=0, tokens=(), confirmed=0))
        await asyncio.wait_for(begun.wait(), 5)
        stream.cancel()
        await asyncio.wait_for(ended.wait(), 5)
        await connection.close()
    handled = series(registry, "grpc_server_handled_total")
    expected = {
        ("GetModel", "OK"),
        ("GetModel", "RESOURCE_EXHAUSTED"),
        ("GetModel", "INTERNAL"),
        ("GetTokenizer", "OK"),
        ("GetTokenizer", "RESOURCE_EXHAUSTED"),
        ("GetTokenizer", "INTERNAL"),
        ("Verify", "OK"),
        ("Verify", "RESOURCE_EXHAUSTED"),
        ("Verify", "CANCELLED"),
    }
    assert {(SERVICE, *one): 1.0 for one in expected} == handled
    started = {(SERVICE, method): 3.0 for method in ("GetModel", "GetTokenizer", "Verify")}
    assert started == series(registry, "grpc_server_started_total")
    assert started == series(registry, "grpc_server_handling_seconds_count")
    assert {"grpc_service", "grpc_method", "grpc_code"} == labels(registry, "grpc_server_handled_total")


def test_calls_of_known_services_are_there_from_the_start(registry: CollectorRegistry) -> None:
    """Every method of theirs, and of health, with every code that our errors have: a first INTERNAL is a rise from zero."""
    GrpcServerMetrics(registry, (SERVICE,))
    handled = series(registry, "grpc_server_handled_total")
    methods = {"Verify", "GetModel", "GetLoad", "GetTokenizer", "Check", "Watch", "List"}
    assert methods == {method for _, method, _ in handled}
    assert {"OK", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED"} <= {code for _, _, code in handled}
    assert {0.0} == set(handled.values())
    assert {0.0} == set(series(registry, "grpc_server_handling_seconds_count").values())


# --- vLLM's names ----------------------------------------------------------------------------------------------------


def test_vllms_names_say_what_ours_say(registry: CollectorRegistry) -> None:
    """A round of two of four accepted, under the names, labels and positions of vLLM."""
    metrics = VerifierMetrics(registry)
    registry.register(VllmNames(metrics, "tiny"))
    metrics.verdict("", verdict(Mode.ROUND, 4, 2, 3), 0.0)
    prefix, labelled = "vllm:spec_decode_num", ("tiny", "0")
    for name, expected in (("drafts", 1.0), ("draft_tokens", 4.0), ("accepted_tokens", 2.0)):
        assert {labelled: expected} == series(registry, f"{prefix}_{name}_total")
    positions = series(registry, f"{prefix}_accepted_tokens_per_pos_total")
    assert POSITIONS == len(positions)
    assert [1.0, 1.0, 0.0] == [positions[*labelled, str(place)] for place in range(3)]
    assert {"model_name", "engine", "position"} == labels(registry, f"{prefix}_accepted_tokens_per_pos_total")


# --- the port --------------------------------------------------------------------------------------------------------


def test_metrics_are_served(registry: CollectorRegistry) -> None:
    """Prometheus reads /metrics at the address that the server names, until it is closed."""
    VerifierMetrics(registry).stale(7)
    server = MetricsServer(registry, "127.0.0.1:0")
    try:
        assert not server.address.endswith(":0")
        with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=5) as answer:
            families = {family.name for family in text_string_to_metric_families(answer.read().decode())}
    finally:
        server.close()
    assert {"specfleet_verifier_rounds", "specfleet_verifier_step_seconds", "specfleet_verifier_build_info"} <= families
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://{server.address}/metrics", timeout=5)


def test_a_metrics_port_in_use_names_the_address_and_the_way_out(registry: CollectorRegistry) -> None:
    """The second one on a port says which and what to do."""
    server = MetricsServer(registry, "127.0.0.1:0")
    try:
        with pytest.raises(
            ConfigurationError, match=f"cannot serve metrics on {server.address}: .*; choose another port, or 0"
        ):
            MetricsServer(registry, server.address)
    finally:
        server.close()


# --- logs ------------------------------------------------------------------------------------------------------------


def line(message: str, **fields: object) -> str:
    record = logging.makeLogRecord({"name": "verifier.loop", "levelname": "INFO", "msg": message, **fields})
    return logs.Formatter().format(record)


def test_a_line_is_an_event_with_fields() -> None:
    """Time, level, logger, event, then the fields in the order they were given."""
    assert line("session preempted", session=3, tokens=40).endswith(
        " info verifier.loop session preempted session=3 tokens=40"
    )


@pytest.mark.parametrize(
    "text", ["two words", "", 'a "quote"', "a=b", "line\nbreak", "tab\t", "\x1b[31mred", "\u2028", "it's two"]
)
def test_a_field_that_is_more_than_a_word_is_quoted(text: str) -> None:
    """As logfmt has it: in double quotes, escaped, on one line, and readable back."""
    quoted = line("event", field=text).split(" field=", 1)[1]
    assert text == json.loads(quoted)
    assert "\n" not in quoted and "\x1b" not in quoted


@pytest.mark.parametrize("value", ["word", "127.0.0.1:7600", "it's", "é", 3, 0.5, None, True])
def test_a_field_that_is_a_word_is_not_quoted(value: object) -> None:
    """Most fields are numbers, names and addresses."""
    assert line("event", field=value).endswith(f" field={value}")


def test_a_traceback_follows_its_line() -> None:
    """Exceptions are logged with where they came from."""
    try:
        raise ValueError("inner")
    except ValueError as error:
        text = line("step failed", exc_info=(type(error), error, error.__traceback__), session=3)
    first, *rest = text.splitlines()
    assert first.endswith("step failed session=3")
    assert "Traceback (most recent call last):" == rest[0] and "ValueError: inner" == rest[-1]


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was once more afterwards."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_logs_go_to_stderr_at_their_level(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """`configure` replaces what was there, so that no line comes twice."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("warning")
    logs.configure("warning")
    logging.getLogger("x").info("quiet")
    logging.getLogger("x").warning("loud", extra={"field": 1})
    assert 1 == len(root.handlers)
    assert 1 == len(stream.getvalue().splitlines())
    assert stream.getvalue().endswith(" warning x loud field=1\n")


def test_a_closed_stream_stops_nothing(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon whose terminal is gone goes on serving; what cannot be written is dropped."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("info")
    stream.close()
    logging.getLogger("x").error("nobody hears this")
    logging.getLogger("x").error("a bad %s of arguments", 1, 2)
