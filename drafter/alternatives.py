"""Which second guesses to send beside a draft: a token tree whose side branches are one token long.

A runner-up costs no drafting, for the draft model had to weigh it anyway; verified, it costs a token of the step. It is right
where all guesses before its place are, the one at its place is not, and the target took just it: with chance
s_{j-1} (1 - c_j) r_j. Then the round commits one token more: the alternative, and the target's own token behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

from drafter.speculators import Guess

LEAST_GAIN = 0.03
"""Tokens that an alternative must promise, however cheap a token of the verifier is."""


def worth_sending(ahead: Sequence[Guess], sent: int, most: int, token_cost: float) -> list[int]:
    """Places in `ahead` (guesses behind the confirmed text, the first `sent` of which are on their way) whose runner-ups
    should go with the others: the most promising, `most` at a time on their way, each worth more than `token_cost` tokens."""
    most -= sum(guess.alternative for guess in ahead[:sent])
    if most <= 0:
        return []
    least, survival = max(token_cost, LEAST_GAIN), 1.0
    found: list[tuple[float, int]] = []
    for place, guess in enumerate(ahead):
        gain = survival * (1.0 - guess.chance) * guess.runner_up_chance
        if place >= sent and gain >= least:
            found.append((gain, place))
        survival *= guess.chance
    return sorted(place for _, place in sorted(found, reverse=True)[:most])
