"""What a step may ask of a model."""

from __future__ import annotations

from specfleet.core.errors import InvalidRequest, PromptTooLong
from specfleet.core.step import StepItem
from specfleet.engine.model import LoadedModel


def check_item(item: StepItem, length: int, model: LoadedModel) -> None:
    """Raise InvalidRequest or PromptTooLong if `model` cannot compute `item` behind the sequence's `length` tokens."""
    name = f"sequence {item.sequence}"
    limit = model.vocabulary_size
    if not 0 <= item.draft < len(item.tokens):
        raise InvalidRequest(f"{name}: {len(item.tokens)} tokens with {item.draft} drafted; one must be no draft")
    if not 0 <= min(item.tokens) <= max(item.tokens) < limit:
        raise InvalidRequest(f"{name}: token ids must be from 0 to {limit - 1}")
    end = length + len(item.tokens)
    if end > model.context_length:
        raise PromptTooLong(f"{name}: {end} tokens do not fit the model's context of {model.context_length}")
    if item.score and not item.sampling.match_rule:
        raise InvalidRequest(f"{name}: without a seed there is no one token that this model would have chosen")
    if item.alternatives:
        _check_alternatives(item, name, model.vocabulary_size)
    if not item.sample or item.want_q:
        if item.draft:
            raise InvalidRequest(f"{name}: drafted tokens need sample=True and want_q=False")
    elif item.draft and not item.sampling.match_rule:
        _check_q(item, name, model.vocabulary_size)


def _check_alternatives(item: StepItem, name: str, limit: int) -> None:
    if not item.sample or item.score or not item.sampling.match_rule:
        raise InvalidRequest(f"{name}: alternatives are for drafts that are verified by the match rule")
    for offset, token in item.alternatives:
        if not (0 <= offset < item.draft and 0 <= token < limit):
            raise InvalidRequest(
                f"{name}: alternative {token} to drafted token {offset} of {item.draft}, counted from 0; token ids "
                f"must be from 0 to {limit - 1}"
            )


def _check_q(item: StepItem, name: str, limit: int) -> None:
    q = item.q or ()
    if len(q) != item.draft:
        raise InvalidRequest(f"{name}: {item.draft} drafted tokens need as many distributions q, not {len(q)}")
    for entry in q:
        if len(entry.token_ids) != len(entry.probabilities):
            raise InvalidRequest(
                f"{name}: q has {len(entry.token_ids)} ids and {len(entry.probabilities)} probabilities"
            )
        if any(not 0 <= token < limit for token in entry.token_ids):
            raise InvalidRequest(f"{name}: token ids of q must be from 0 to {limit - 1}")
