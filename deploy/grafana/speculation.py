"""Speculation: whether guesses are right, how far they go, what is wasted, what the network costs."""

from __future__ import annotations

from typing import Any

from deploy.grafana.panels import COUNT, PER_SECOND, RATIO, SECONDS, bars, board, distribution, lines
from deploy.grafana.promql import DRAFTER, VERIFIER, chosen, mean, quantile, quantiles, rate, share

ACCEPTED, DRAFTED, ROUNDS = (f"{VERIFIER}{name}_total" for name in ("accepted_tokens", "draft_tokens", "rounds"))
BY = ("instance",)
PER_POSITION = (
    f"{rate(f'{VERIFIER}accepted_tokens_per_position_total', ('position',))} / on () group_left {rate(ROUNDS)}"
)
FIRST_EIGHT = (
    f"{rate(f'{VERIFIER}accepted_tokens_per_position_total', ('position',), position='[0-7]')} "
    f"/ on () group_left {rate(ROUNDS)}"
)
BATCH = mean(f"{VERIFIER}batch_sequences", BY)
GRANTED = mean(f"{VERIFIER}speculation_length", BY)
USED = f"{rate(DRAFTED, BY)} / {rate(ROUNDS, BY)}"


def dashboard() -> Any:
    return board(
        "specfleet-speculation",
        "specfleet / Speculation",
        "Whether guesses are right, how far they go, what is wasted, what the network costs.",
        [("Acceptance", _acceptance()), ("Lengths", _lengths()), ("Drafting", _drafting()), ("Network", _network())],
    )


def _acceptance() -> list[Any]:
    return [
        lines(
            "Acceptance",
            "Accepted of the drafted tokens that were verified. Nothing while nobody drafts.",
            RATIO,
            (f"{rate(ACCEPTED, BY)} / {rate(DRAFTED, BY)}", "{{instance}}"),
        ),
        bars(
            "Acceptance by position",
            "Share of the rounds in which the guess at this place of the draft was accepted; drafts that were too short "
            "for it count as rounds.",
            RATIO,
            PER_POSITION,
            "{{position}}",
        ),
        lines(
            "Acceptance by position over time",
            "The same for the first eight places.",
            RATIO,
            (FIRST_EIGHT, "{{position}}"),
        ),
        lines(
            "Tokens per round",
            "1 + accepted / rounds: with the target's own token, as in vLLM.",
            COUNT,
            (f"1 + {rate(ACCEPTED, BY)} / {rate(ROUNDS, BY)}", "{{instance}}"),
        ),
        lines(
            "Speed against target-only (estimate)",
            "What a token would take without drafts, by the verifiers' model of their steps, over what it takes. Below 1 a "
            "drafter holds its users up.",
            COUNT,
            ("specfleet:speculation_gain:ratio_rate5m" + '{instance=~"$drafter"}', "{{instance}}"),
        ),
        lines(
            "Calibration",
            "Expected error of the chance that a drafter gives its guesses.",
            RATIO,
            (chosen(f"{DRAFTER}calibration_error"), "{{instance}}"),
        ),
    ]


def _lengths() -> list[Any]:
    return [
        lines(
            "Granted and used lengths",
            "Mean of what sessions were granted (zero in LOCAL), and of what a round verified.",
            COUNT,
            (GRANTED, "granted {{instance}}"),
            (USED, "used {{instance}}"),
        ),
        distribution(
            "Granted lengths",
            "By how often.",
            COUNT,
            rate(f"{VERIFIER}speculation_length_bucket", ("le",)),
        ),
        lines(
            "Granted lengths by class",
            "Mean.",
            COUNT,
            (mean(f"{VERIFIER}speculation_length", ("slo_class",)), "class {{slo_class}}"),
        ),
        lines(
            "Batch size against length",
            "Sequences in a step beside the drafted tokens of a round: where batches are large, drafts should be short.",
            COUNT,
            (BATCH, "sequences {{instance}}"),
            (USED, "used length {{instance}}"),
        ),
        lines(
            "Modes",
            "Share of sessions' time.",
            RATIO,
            (share(f"{DRAFTER}mode_seconds_total", "mode"), "{{mode}}"),
            stacked=True,
        ),
        lines(
            "Changes of mode",
            "Per second.",
            PER_SECOND,
            (rate(f"{VERIFIER}mode_switches_total", ("from", "to")), "{{from}} to {{to}}"),
        ),
    ]


def _drafting() -> list[Any]:
    return [
        lines(
            "What became of guesses",
            "Accepted; refused; stale: the text went another way meanwhile; trimmed: left out of a step; discarded: never "
            "sent, or overtaken.",
            RATIO,
            (share(f"{DRAFTER}settled_tokens_total", "fate"), "{{fate}}"),
            stacked=True,
        ),
        lines(
            "Drafting time",
            "Share that was of use, and that was wasted.",
            RATIO,
            (share(f"{DRAFTER}drafting_seconds_total", "outcome"), "{{outcome}}"),
            stacked=True,
        ),
        lines(
            "Guesses dropped before they were verified",
            "By reason; and drafts that reached the verifier too late.",
            PER_SECOND,
            (rate(f"{DRAFTER}discarded_tokens_total", ("reason",)), "{{reason}}"),
            (rate(f"{VERIFIER}stale_draft_tokens_total"), "stale at verifiers"),
        ),
        lines(
            "Guesses ahead of verdicts",
            "By their use.",
            PER_SECOND,
            (rate(f"{DRAFTER}ahead_tokens_total", ("outcome",)), "{{outcome}}"),
        ),
        lines(
            "Drafts that ended early",
            "Right where something was refused all the same; premature where everything was accepted.",
            PER_SECOND,
            (rate(f"{DRAFTER}early_stops_total", ("outcome",)), "{{outcome}}"),
        ),
        lines(
            "Guesses by speculator",
            "Drafted tokens per second.",
            PER_SECOND,
            (rate(f"{DRAFTER}drafted_tokens_total", ("speculator",)), "{{speculator}}"),
        ),
        lines(
            "Time of a guess",
            "Per token, waiting for others' included.",
            SECONDS,
            *quantiles(f"{DRAFTER}draft_step_seconds"),
        ),
        lines(
            "Reports that were ignored",
            "What drafters said of themselves and cannot be.",
            PER_SECOND,
            (rate(f"{VERIFIER}ignored_reports_total", ("instance", "report")), "{{instance}} {{report}}"),
        ),
    ]


def _network() -> list[Any]:
    return [
        lines(
            "Network round trip",
            "From opening a session to its answer, less the verifier's own time.",
            SECONDS,
            *quantiles(f"{DRAFTER}network_seconds"),
        ),
        lines(
            "Round trip of a draft",
            "From a draft sent to its verdict.",
            SECONDS,
            *quantiles(f"{DRAFTER}round_trip_seconds"),
        ),
        lines(
            "Round trip of a draft by drafter",
            "Median.",
            SECONDS,
            (quantile(0.5, f"{DRAFTER}round_trip_seconds", BY), "{{instance}}"),
        ),
    ]
