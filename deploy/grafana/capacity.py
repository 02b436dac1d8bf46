"""Capacity and KV: pages, steps, batches, and what deciding costs."""

from __future__ import annotations

from typing import Any

from deploy.grafana.panels import COUNT, PER_SECOND, RATIO, SECONDS, board, distribution, lines
from deploy.grafana.promql import VERIFIER, mean, quantiles, rate, total

BY = ("instance",)
PAGES = f"{VERIFIER}kv_pages"
STEPS = rate(f"{VERIFIER}step_seconds_count", BY)


def dashboard() -> Any:
    return board(
        "specfleet-capacity",
        "specfleet / Capacity and KV",
        "Pages, steps, batches, and what deciding costs.",
        [("KV cache", _cache()), ("Steps", _steps()), ("Batches", _batches()), ("Processes", _processes())],
    )


def _cache() -> list[Any]:
    return [
        lines("Pages", "Of 16 tokens each.", COUNT, (total(PAGES, ("state",)), "{{state}}"), stacked=True),
        lines(
            "Pages in use",
            "Share that sessions hold. Cached ones can be taken at any time.",
            RATIO,
            (f"{total(PAGES, BY, state='used')} / {total(PAGES, BY)}", "{{instance}}"),
        ),
        lines(
            "Prefix cache",
            "Share of prompt tokens that were computed before.",
            RATIO,
            (
                f"{rate(f'{VERIFIER}prefix_cache_hits_total', BY)} / {rate(f'{VERIFIER}prefix_cache_queries_total', BY)}",
                "{{instance}}",
            ),
        ),
        lines(
            "Evictions",
            "Sessions that lost their pages (preempted), cached pages taken for something else (cache).",
            PER_SECOND,
            (rate(f"{VERIFIER}evictions_total", ("reason",)), "{{reason}}"),
        ),
        lines(
            "Sessions",
            "By what they wait for.",
            COUNT,
            (total(f"{VERIFIER}sessions", ("state",)), "{{state}}"),
            stacked=True,
        ),
    ]


def _steps() -> list[Any]:
    return [
        lines("Duration of a step", "", SECONDS, *quantiles(f"{VERIFIER}step_seconds")),
        lines(
            "Predicted and measured",
            "Mean duration of a step.",
            SECONDS,
            (mean(f"{VERIFIER}step_seconds", BY), "measured {{instance}}"),
            (mean(f"{VERIFIER}step_predicted_seconds", BY), "predicted {{instance}}"),
        ),
        lines(
            "What drafts add to a step",
            "Mean duration of a step, and what it would have been without drafts, by the verifier's model of steps.",
            SECONDS,
            (mean(f"{VERIFIER}step_seconds", BY), "measured {{instance}}"),
            (f"{rate(f'{VERIFIER}step_target_only_seconds_total', BY)} / {STEPS}", "without drafts {{instance}}"),
        ),
        lines(
            "Error of predictions",
            "Mean of |predicted / measured - 1|.",
            RATIO,
            (
                f"{rate(f'{VERIFIER}step_relative_error_total', BY)} / {STEPS}",
                "{{instance}}",
            ),
        ),
        lines("Busy", "Share of the time in a step.", RATIO, (rate(f"{VERIFIER}step_seconds_sum", BY), "{{instance}}")),
        lines("Steps", "Per second.", PER_SECOND, (STEPS, "{{instance}}")),
        lines("Deciding", "Plan and commit of a step.", SECONDS, *quantiles(f"{VERIFIER}controller_seconds")),
    ]


def _batches() -> list[Any]:
    return [
        lines("Sequences in a step", "", COUNT, *quantiles(f"{VERIFIER}batch_sequences")),
        lines("Tokens in a step", "", COUNT, *quantiles(f"{VERIFIER}batch_tokens")),
        distribution("Tokens in a step", "By how often.", COUNT, rate(f"{VERIFIER}batch_tokens_bucket", ("le",))),
    ]


def _processes() -> list[Any]:
    name = "{{job}} {{instance}}"
    return [
        lines("Processor", "Cores in use.", COUNT, (rate("process_cpu_seconds_total", ("job", "instance")), name)),
        lines("Memory", "Resident.", "bytes", (total("process_resident_memory_bytes", ("job", "instance")), name)),
        lines("Open files", "", COUNT, (total("process_open_fds", ("job", "instance")), name)),
    ]
