"""What a step may ask of a model."""

from __future__ import annotations

from specfleet.core.errors import InvalidRequest, PromptTooLong
from specfleet.core.step import StepItem
from specfleet.engine.model import LoadedModel


def check_item(item: StepItem, length: int, model: LoadedModel) -> None:
    """Raise InvalidRequest or PromptTooLong if `model` cannot compute `item` behind the sequence's `length` tokens."""
    tokens, draft, limit = item.tokens, item.draft, model.vocabulary_size
    count = len(tokens)
    if not 0 <= draft < count:
        raise _invalid(item, f"{count} tokens with {draft} drafted; one must be no draft")
    if not 0 <= min(tokens) <= max(tokens) < limit:
        raise _invalid(item, f"token ids must be from 0 to {limit - 1}")
    end = length + count
    if end > model.context_length:
        raise PromptTooLong(
            f"sequence {item.sequence}: {end} tokens do not fit the model's context of {model.context_length}"
        )
    if item.score and not item.sampling.match_rule:
        raise _invalid(item, "without a seed there is no one token that this model would have chosen")
    if item.alternatives:
        _check_alternatives(item, limit)
    if draft:
        if not item.sample or item.want_q:
            raise _invalid(item, "drafted tokens need sample=True and want_q=False")
        if not item.sampling.match_rule:
            _check_q(item, limit)


def _invalid(item: StepItem, problem: str) -> InvalidRequest:
    return InvalidRequest(f"sequence {item.sequence}: {problem}")


def _check_alternatives(item: StepItem, limit: int) -> None:
    if not item.sample or item.score or not item.sampling.match_rule:
        raise _invalid(item, "alternatives are for drafts that are verified by the match rule")
    for offset, token in item.alternatives:
        if not (0 <= offset < item.draft and 0 <= token < limit):
            raise _invalid(
                item,
                f"alternative {token} to drafted token {offset} of {item.draft}, counted from 0; token ids must be from 0 to "
                f"{limit - 1}",
            )


def _check_q(item: StepItem, limit: int) -> None:
    q = item.q or ()
    if len(q) != item.draft:
        raise _invalid(item, f"{item.draft} drafted tokens need as many distributions q, not {len(q)}")
    for entry in q:
        if len(entry.token_ids) != len(entry.probabilities):
            raise _invalid(item, f"q has {len(entry.token_ids)} ids and {len(entry.probabilities)} probabilities")
        if any(not 0 <= token < limit for token in entry.token_ids):
            raise _invalid(item, f"token ids of q must be from 0 to {limit - 1}")
