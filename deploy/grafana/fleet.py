"""The fleet at a glance: who is there, what it produces, how long users wait, what goes wrong."""

from __future__ import annotations

from typing import Any

from deploy.grafana.panels import COUNT, PER_SECOND, RATIO, SECONDS, bars, board, lines, number
from deploy.grafana.promql import DRAFTER, VERIFIER, mean, quantiles, rate, share, total

KINDS = ("accepted", "bonus", "recovered", "target_only")
COMMITTED = " + ".join(rate(f"{VERIFIER}{kind}_tokens_total") for kind in KINDS)
ACCEPTANCE = f"{rate(f'{VERIFIER}accepted_tokens_total')} / {rate(f'{VERIFIER}draft_tokens_total')}"
FAILED = "error"
RED_BELOW_ONE = ((None, "red"), (1.0, "green"))


def dashboard() -> Any:
    return board(
        "specfleet-fleet",
        "specfleet / Fleet",
        "Who is there, what it produces, how long users wait, what goes wrong.",
        [
            (
                "Now",
                [
                    number(
                        "Verifiers up",
                        "Share of the verifiers that Prometheus reaches.",
                        RATIO,
                        'avg(up{job="specfleet-verifier"})',
                        RED_BELOW_ONE,
                    ),
                    number(
                        "Drafters up",
                        "Share of the drafters that Prometheus reaches.",
                        RATIO,
                        'avg(up{job="specfleet-drafter"})',
                        RED_BELOW_ONE,
                    ),
                    number("Sessions", "Open at verifiers.", COUNT, total(f"{VERIFIER}sessions")),
                    number("Tokens/s", "Committed by all verifiers.", PER_SECOND, COMMITTED),
                    number(
                        "Acceptance",
                        "Accepted of the drafted tokens that were verified. None while nobody drafts.",
                        RATIO,
                        ACCEPTANCE,
                    ),
                    number(
                        "Failed generations",
                        "Share of drafters' generations that ended with an error.",
                        RATIO,
                        f"{rate(f'{DRAFTER}requests_total', finish_reason=FAILED)} / {rate(f'{DRAFTER}requests_total')}",
                        ((None, "green"), (0.01, "red")),
                    ),
                ],
            ),
            (
                "Work",
                [
                    lines(
                        "Committed tokens by origin",
                        "Accepted guesses, the target's own token behind a draft accepted in full (bonus) or where one was "
                        "refused (recovered), and tokens decoded without a draft (target-only).",
                        PER_SECOND,
                        *((rate(f"{VERIFIER}{kind}_tokens_total"), kind.replace("_", "-")) for kind in KINDS),
                        stacked=True,
                    ),
                    lines(
                        "Sessions",
                        "Open at each verifier, by what they wait for.",
                        COUNT,
                        (total(f"{VERIFIER}sessions", ("instance", "state")), "{{instance}} {{state}}"),
                        stacked=True,
                    ),
                    lines(
                        "Sessions of drafters",
                        "Open at each drafter.",
                        COUNT,
                        (total(f"{DRAFTER}sessions", ("instance",)), "{{instance}}"),
                        stacked=True,
                    ),
                    lines(
                        "Generations by their end",
                        "Per second, as drafters saw them.",
                        PER_SECOND,
                        (rate(f"{DRAFTER}requests_total", ("finish_reason",)), "{{finish_reason}}"),
                        stacked=True,
                    ),
                    lines(
                        "Verifiers' load",
                        "Share of the time that a verifier is in a step.",
                        RATIO,
                        (rate(f"{VERIFIER}step_seconds_sum", ("instance",)), "{{instance}}"),
                    ),
                    lines(
                        "Modes",
                        "Share of the sessions' time that the verifier decodes alone (local), verifies what has arrived "
                        "(stream), or waits for drafts (round).",
                        RATIO,
                        (share(f"{DRAFTER}mode_seconds_total", "mode"), "{{mode}}"),
                        stacked=True,
                    ),
                ],
            ),
            (
                "What users wait for",
                [
                    lines(
                        "Time to first token",
                        "From a request's arrival at its drafter.",
                        SECONDS,
                        *quantiles(f"{DRAFTER}time_to_first_token_seconds"),
                    ),
                    lines(
                        "Time per output token",
                        "Behind the first one.",
                        SECONDS,
                        *quantiles(f"{DRAFTER}time_per_output_token_seconds"),
                    ),
                    lines(
                        "Time per output token by drafter",
                        "Mean.",
                        SECONDS,
                        (mean(f"{DRAFTER}time_per_output_token_seconds", ("instance",)), "{{instance}}"),
                    ),
                ],
            ),
            (
                "What goes wrong",
                [
                    lines(
                        "Calls",
                        "Begun per second, by method.",
                        PER_SECOND,
                        (rate("grpc_server_started_total", ("job", "grpc_method")), "{{job}} {{grpc_method}}"),
                    ),
                    lines(
                        "Calls that failed",
                        "By code, per second. INTERNAL is ours and should be zero.",
                        PER_SECOND,
                        (rate("grpc_server_handled_total", ("grpc_code",), grpc_code="[^O].*"), "{{grpc_code}}"),
                    ),
                    lines(
                        "HTTP requests",
                        "Begun per second, by route.",
                        PER_SECOND,
                        (rate("http_server_started_total", ("http_route",)), "{{http_route}}"),
                    ),
                    lines(
                        "HTTP requests that failed",
                        "By code, per second. 500 is ours and should be zero; 499 left before there was an answer.",
                        PER_SECOND,
                        (rate("http_server_handled_total", ("http_code",), http_code="[45].*"), "{{http_code}}"),
                    ),
                    lines(
                        "HTTP requests at a time",
                        "Seconds of requests per second, by route.",
                        COUNT,
                        (rate("http_server_handling_seconds_sum", ("http_route",)), "{{http_route}}"),
                    ),
                    lines(
                        "Generations that changed hands",
                        "Opened anew after a loss, verifiers left by drafters, and resumed generations that verifiers let in "
                        "or refused.",
                        PER_SECOND,
                        (rate(f"{DRAFTER}resumes_total"), "resumed by drafters"),
                        (rate(f"{DRAFTER}verifier_switches_total", ("reason",)), "left: {{reason}}"),
                        (rate(f"{VERIFIER}resumes_total", ("outcome",)), "at verifiers: {{outcome}}"),
                    ),
                    lines(
                        "Memory",
                        "Resident, of each daemon.",
                        "bytes",
                        (total("process_resident_memory_bytes", ("job", "instance")), "{{job}} {{instance}}"),
                    ),
                    bars(
                        "Software",
                        "Daemons by version.",
                        COUNT,
                        'count by (job, version) ({__name__=~"specfleet_(verifier|drafter)_build_info"})',
                        "{{job}} {{version}}",
                        width=16,
                    ),
                ],
            ),
        ],
    )
