"""Service levels and fairness: who gets what was promised, who waits, who is refused."""

from __future__ import annotations

from typing import Any

from deploy.grafana.panels import COUNT, PER_SECOND, RATIO, SECONDS, board, lines
from deploy.grafana.promql import DRAFTER, VERIFIER, chosen, quantile, quantiles, rate, share, total

BY, CLASS = ("instance",), ("slo_class",)
KEPT = f"{rate(f'{VERIFIER}slo_requests_total', CLASS, met='true')} / {rate(f'{VERIFIER}slo_requests_total', CLASS)}"


def dashboard() -> Any:
    return board(
        "specfleet-service",
        "specfleet / Service levels and fairness",
        "Who gets what was promised, who waits, who is refused.",
        [("Promises", _promises()), ("Waiting", _waiting()), ("Fairness", _fairness())],
    )


def _promises() -> list[Any]:
    return [
        lines(
            "Requests that kept their class",
            "Share of those served to their end. Requests without a class promise nothing and are always kept.",
            RATIO,
            (KEPT, "class {{slo_class}}"),
        ),
        lines(
            "Burn rate",
            "How many times faster than 99 % allows promises are broken: 14.4 over an hour uses up 2 % of a month's budget.",
            COUNT,
            *(
                (f"specfleet:slo_miss:ratio_rate{span} / 0.01", f"{span} class {{{{slo_class}}}}")
                for span in ("5m", "1h", "6h")
            ),
        ),
        lines(
            "Goodput by class",
            "Tokens per second of requests that kept their class.",
            PER_SECOND,
            (rate(f"{VERIFIER}goodput_tokens_total", CLASS), "class {{slo_class}}"),
            stacked=True,
        ),
        lines(
            "Generations by class and end",
            "Per second, at verifiers.",
            PER_SECOND,
            (
                rate(f"{VERIFIER}requests_total", ("slo_class", "finish_reason")),
                "class {{slo_class}} {{finish_reason}}",
            ),
        ),
        lines("Time to first token", "At drafters.", SECONDS, *quantiles(f"{DRAFTER}time_to_first_token_seconds")),
        lines("Time per output token", "At drafters.", SECONDS, *quantiles(f"{DRAFTER}time_per_output_token_seconds")),
    ]


def _waiting() -> list[Any]:
    return [
        lines(
            "Queue",
            "Sessions that wait, by what for.",
            COUNT,
            (total(f"{VERIFIER}queue_length", ("kind",)), "{{kind}}"),
        ),
        lines("Wait for a step", "Of sessions that were ready.", SECONDS, *quantiles(f"{VERIFIER}wait_seconds")),
        lines(
            "Left out of steps",
            "What a session waits for a token because there is no room in a step; mean.",
            SECONDS,
            (
                f"{rate(f'{VERIFIER}queued_seconds_total', BY)} / {rate(f'{VERIFIER}wait_seconds_count', BY)}",
                "{{instance}}",
            ),
        ),
        lines(
            "Refused at admission",
            "By reason, per second.",
            PER_SECOND,
            (rate(f"{VERIFIER}rejected_total", ("reason",)), "{{reason}}"),
        ),
        lines(
            "Duration of generations",
            "p95 of calls, by service.",
            SECONDS,
            (
                quantile(0.95, "grpc_server_handling_seconds", ("job",), grpc_method="Generate|Verify"),
                "{{job}}",
            ),
        ),
    ]


def _fairness() -> list[Any]:
    return [
        lines(
            "Jain's index",
            "Over the goodput of identities, by weight: 1 is even, 1/n is one of n having it all.",
            RATIO,
            (chosen(f"{VERIFIER}fairness_jain"), "{{instance}}"),
        ),
        lines(
            "Price of a second",
            "Of the verifier, in weighted tokens: what serving somebody costs the others. 0 where the policy knows none.",
            COUNT,
            (chosen(f"{VERIFIER}gpu_second_price"), "{{instance}}"),
        ),
        lines(
            "Sessions that lost their pages",
            "Per second: whoever is preempted computes its text again.",
            PER_SECOND,
            (rate(f"{VERIFIER}evictions_total", ("instance",), reason="preempted"), "{{instance}}"),
        ),
        lines(
            "Ends at verifiers",
            "Shares.",
            RATIO,
            (share(f"{VERIFIER}requests_total", "finish_reason"), "{{finish_reason}}"),
            stacked=True,
        ),
    ]
