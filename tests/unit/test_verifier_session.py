"""One session on the verifier: what becomes of drafts, what a commit does, when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from specfleet.core.errors import InvalidRequest, PositionGap
from specfleet.core.protocol import Draft, Open
from specfleet.core.step import DraftDistribution, StepResult
from specfleet.core.types import LOCAL, FinishReason, Mode, SamplingParams, Usage
from verifier.session import MAX_BRANCHES, MAX_PENDING, Offered, Session

EOS = 9
PROMPT = (1, 2, 3)


def session(prompt: Sequence[int] = PROMPT, output: Sequence[int] = (), limit: int = 1000, **sampling: Any) -> Session:
    """A greedy session unless `sampling` says otherwise."""

    async def make() -> Session:
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 500} | sampling)
        return Session(1, Open(prompt=tuple(prompt), output=tuple(output), sampling=params), (EOS,), limit)

    return asyncio.run(make())  # a session makes a future, so it needs a loop; these tests do not wait for it


def offer(one: Session, position: int, *tokens: int, confirmed: int | None = None, **fields: Any) -> Offered:
    """A draft; `confirmed` is the position unless it says otherwise."""
    return one.offer(
        Draft(position=position, tokens=tokens, confirmed=position if confirmed is None else confirmed, **fields)
    )


def step(one: Session, accepted: int, *tokens: int, drafted: int = 4) -> None:
    one.commit(StepResult(accepted, tokens), drafted)


def waiting(one: Session) -> list[int]:
    return one.take_draft(1000)[0]


# --- drafts ----------------------------------------------------------------------------------------------------------


def test_a_draft_behind_the_text_waits() -> None:
    """Tokens that continue what is committed wait to be verified."""
    one = session()
    assert Offered(added=2, stale=0) == offer(one, 3, 4, 5)
    assert ([4, 5], 2) == (waiting(one), one.pending)


def test_a_repeated_draft_is_harmless() -> None:
    """The same draft again adds nothing and is not stale."""
    one = session()
    offer(one, 3, 4, 5)
    assert Offered(added=0, stale=0) == offer(one, 3, 4, 5)
    assert [4, 5] == waiting(one)


def test_an_overlapping_draft_adds_its_end() -> None:
    """A draft that repeats a part and goes further adds only what is new."""
    one = session()
    offer(one, 3, 4, 5)
    assert Offered(added=2, stale=0) == offer(one, 4, 5, 6, 7, confirmed=3)
    assert [4, 5, 6, 7] == waiting(one)


def test_a_shorter_repetition_keeps_the_rest() -> None:
    """What agrees with the beginning of what waits does not cut off its end."""
    one = session()
    offer(one, 3, 4, 5, 6)
    offer(one, 3, 4)
    assert [4, 5, 6] == waiting(one)


def test_the_newest_word_wins() -> None:
    """A draft that differs replaces what waits from there on, longer or shorter."""
    one = session()
    offer(one, 3, 4, 5, 6)
    assert Offered(added=0, stale=2) == offer(one, 4, 8, confirmed=3)
    assert [4, 8] == waiting(one)


def test_the_committed_part_of_a_draft_is_dropped() -> None:
    """A late draft that agrees with the text counts only beyond it."""
    one = session()
    step(one, 0, 4)
    assert Offered(added=1, stale=0) == offer(one, 3, 4, 5)
    assert [5] == waiting(one)
    assert Offered(added=0, stale=0) == offer(one, 0, 1, 2, 3, 4, confirmed=3)


def test_a_draft_that_contradicts_the_text_is_stale() -> None:
    """All of it is dropped, and what waits stays."""
    one = session()
    step(one, 0, 4)
    offer(one, 4, 5)
    assert Offered(added=0, stale=3) == offer(one, 3, 7, 8, 6)
    assert [5] == waiting(one)


def test_a_continuation_of_a_contradicted_branch_is_stale() -> None:
    """A drafter that had not seen the contradiction went on from its own wrong guess."""
    one = session()
    step(one, 0, 4)
    offer(one, 3, 7, 8)
    assert Offered(added=0, stale=2) == offer(one, 5, 6, 6, confirmed=3)
    assert Offered(added=0, stale=1) == offer(one, 4, 6, confirmed=3)
    assert Offered(added=1, stale=0) == offer(one, 4, 5, confirmed=4)


def test_what_follows_a_refused_draft_is_stale_until_the_drafter_knows() -> None:
    """After a commit contradicts what waited, drafts from before are of another branch."""
    one = session()
    offer(one, 3, 4, 5)
    step(one, 0, 8)
    assert [] == waiting(one)
    assert Offered(added=0, stale=1) == offer(one, 4, 6, confirmed=3)
    assert Offered(added=0, stale=1) == offer(one, 5, 6, confirmed=3)
    assert Offered(added=1, stale=0) == offer(one, 4, 5, confirmed=4)


def test_a_gap_is_an_error_only_where_everything_was_known() -> None:
    """A drafter that had not seen the newest text cannot know better: its draft is stale, not a gap."""
    one = session()
    step(one, 0, 4)
    assert Offered(added=0, stale=1) == offer(one, 6, 7, confirmed=3)
    with pytest.raises(PositionGap, match=r"begins at position 6, but only 4 positions are known; send .* from 4 on"):
        offer(one, 6, 7, confirmed=4)
    offer(one, 4, 5, 6)
    assert Offered(added=1, stale=0) == offer(one, 6, 7, confirmed=4)


def test_no_more_waits_than_the_limit_and_the_rest_is_no_gap() -> None:
    """What is cut off at the limit is stale, and so is its continuation, since the drafter sent it all."""
    one = session()
    many = tuple(range(10, 10 + MAX_PENDING + 5))
    assert Offered(added=MAX_PENDING, stale=5) == offer(one, 3, *many)
    assert list(many[:MAX_PENDING]) == waiting(one)
    assert Offered(added=0, stale=2) == offer(one, 3 + len(many), 1, 1, confirmed=3)
    assert Offered(added=0, stale=1) == offer(one, 3 + MAX_PENDING, 99, confirmed=3)


def test_nothing_waits_beyond_the_sessions_end() -> None:
    """The last token is the target's own: what is drafted from there on can never be verified, and takes no room."""
    one = session(max_tokens=4)
    offer(one, 3, 4, 5, 6, 7, 8)
    assert [4, 5, 6] == waiting(one)
    one = session(limit=5)
    offer(one, 3, 4, 5, 6, 7, 8)
    assert [4] == waiting(one)


def test_rejection_needs_a_distribution_for_each_token() -> None:
    """Without a seed, a draft without its distributions is refused; an empty one needs none."""
    one = session(temperature=1.0)
    with pytest.raises(InvalidRequest, match="distributions: is empty"):
        offer(one, 3, 4)
    assert Offered(0, 0) == offer(one, 3, last=True)
    assert one.complete


def test_distributions_stay_beside_their_tokens() -> None:
    """Overlaps, replacements and commits move tokens and distributions together."""
    one = session(temperature=1.0)
    q = {token: DraftDistribution((token,), (1.0,)) for token in range(20)}

    def send(position: int, *tokens: int) -> None:
        offer(one, position, *tokens, confirmed=3, q=tuple(q[token] for token in tokens))

    send(3, 4, 5, 6)
    send(4, 5, 6, 7)
    send(6, 8)
    assert ([4, 5, 6, 8], [q[4], q[5], q[6], q[8]]) == one.take_draft(9)
    assert ([4, 5], [q[4], q[5]]) == one.take_draft(2)
    step(one, 1, 4, 5)
    assert ([6, 8], [q[6], q[8]]) == one.take_draft(9)
    step(one, 0, 7)
    assert ([], []) == one.take_draft(9)


def test_match_needs_no_distributions() -> None:
    """Greedy and seeded sessions take drafts without, and give none to the step."""
    for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 0}):
        one = session(**sampling)
        offer(one, 3, 4)
        assert ([4], None) == one.take_draft(1)


def test_taken_tokens_stay_until_the_commit() -> None:
    """A step looks at what waits; only its outcome changes it."""
    one = session()
    offer(one, 3, 4, 5)
    assert [4] == one.take_draft(1)[0]
    assert [4, 5] == one.take_draft(2)[0]


def test_no_more_will_come_holds_for_this_round_only() -> None:
    """ "Last" completes the round until the next verdict; a repeated draft that does not say so takes nothing back."""
    one = session()
    offer(one, 3, 4, last=True)
    assert one.complete
    step(one, 1, 4, 5)
    assert not one.complete
    offer(one, 5, last=True)
    assert one.complete
    offer(one, 5, 6)
    assert one.complete


def test_no_more_will_come_of_a_past_round_is_void() -> None:
    """A late "last" whose tokens are of no use any more must not end the wait for the present round."""
    one = session()
    step(one, 0, 4)
    offer(one, 3, 7, last=True)
    assert not one.complete
    offer(one, 3, last=True)
    assert not one.complete
    offer(one, 4, last=True)
    assert one.complete


# --- commits ---------------------------------------------------------------------------------------------------------


def test_a_commit_is_accepted_plus_one() -> None:
    """The verdict carries the accepted tokens and one of the target's own, from the text's old end."""
    one = session()
    offer(one, 3, 4, 5, 6)
    one.mode = Mode.ROUND
    verdict = one.commit(StepResult(2, (4, 5, 8), logprobs=(-1.0, -2.0, -3.0)), 3)
    assert (3, (4, 5, 8), 3, 2) == (verdict.position, verdict.tokens, verdict.drafted, verdict.accepted)
    assert ((-1.0, -2.0, -3.0), Mode.ROUND, LOCAL) == (verdict.logprobs, verdict.mode, verdict.grant)
    assert ([1, 2, 3, 4, 5, 8], 5) == (one.tokens, one.computed)
    assert [] == waiting(one)


def test_what_the_target_confirms_by_itself_goes_on_waiting() -> None:
    """Drafted tokens beyond the step's share stay when the target's own token agrees with them."""
    one = session()
    offer(one, 3, 4, 5, 6, 7)
    one.commit(StepResult(1, (4, 5)), 1)
    assert [6, 7] == waiting(one)


def test_a_stop_id_ends_the_text_and_cuts_the_rest_off() -> None:
    """Tokens behind the end of text inside an accepted draft are not committed, nor counted as accepted."""
    one = session()
    offer(one, 3, 4, EOS, 6)
    top = (((4, -1.0),), ((9, -0.5),), ((6, -3.0),), ((7, -4.0),))
    verdict = one.commit(StepResult(3, (4, EOS, 6, 7), logprobs=(-1.0, -2.0, -3.0, -4.0), top_logprobs=top), 3)
    assert ((4, EOS), 2, (-1.0, -2.0)) == (verdict.tokens, verdict.accepted, verdict.logprobs)
    assert top[:2] == verdict.top_logprobs
    assert FinishReason.STOP is one.finished
    assert Usage(3, 2, 0) == one.usage


def test_a_requests_own_stop_ids_count_and_the_models_can_be_ignored() -> None:
    """stop_token_ids end the text whatever ignore_eos says about the model's own ids."""
    one = session(stop_token_ids=(5,), ignore_eos=True)
    step(one, 0, EOS)
    assert one.finished is None
    step(one, 0, 5)
    assert FinishReason.STOP is one.finished


def test_max_tokens_ends_the_text_exactly() -> None:
    """A commit that would go beyond is cut, and its reason is length."""
    one = session(max_tokens=2)
    verdict = one.commit(StepResult(3, (4, 5, 6, 7)), 3)
    assert ((4, 5), FinishReason.LENGTH) == (verdict.tokens, one.finished)
    one = session(limit=4)
    assert (4,) == one.commit(StepResult(1, (4, 5)), 1).tokens
    assert FinishReason.LENGTH is one.finished


def test_an_end_id_in_the_last_place_is_a_stop() -> None:
    """Where both hold, the text ended by itself."""
    one = session(max_tokens=1)
    step(one, 0, EOS)
    assert FinishReason.STOP is one.finished


@pytest.mark.parametrize(
    ("output", "reason"),
    [((4,), None), ((4, EOS), FinishReason.STOP), ((4, 5, 6), FinishReason.LENGTH), ((), None)],
)
def test_a_resumed_session_may_have_nothing_left_to_do(output: tuple[int, ...], reason: FinishReason | None) -> None:
    """Committed output counts: its end id, or its length."""
    one = session(output=output, max_tokens=3)
    assert (reason, len(output)) == (one.finished, one.resumed_length)
    assert (3, len(output)) == (one.prompt_length, one.output_length)


def test_an_end_id_that_ends_the_prompt_ends_nothing() -> None:
    """Chat templates end prompts with such ids; only output stops."""
    assert session(prompt=(1, EOS)).finished is None


def test_a_new_branch_is_not_taken_for_the_old_one() -> None:
    """Text 10 20 30 40 is committed while two branches are on their way: the old one, wrong at 20, and the one that its
    drafter began when it saw the 20. What continues the new one counts, though it was sent before the 40 was seen."""
    one = session()
    for token in (10, 20, 30, 40):
        step(one, 0, token, drafted=0)
    old = [offer(one, 3, 10, confirmed=3), offer(one, 4, 99, confirmed=3), offer(one, 5, 98, confirmed=4)]
    assert [0, 1, 1] == [offered.stale for offered in old]
    assert 0 == offer(one, 5, 30, confirmed=5).stale
    assert 0 == offer(one, 6, 40, confirmed=5).stale
    assert Offered(1, 0) == offer(one, 7, 50, confirmed=6)
    assert Offered(1, 0) == offer(one, 8, 60, confirmed=7)


def test_a_late_repetition_takes_nothing_back() -> None:
    """A draft of a branch since left, come again when a newer one waits: the newer one stays, and what continues it is no
    gap. (Found by simulation: seed 256 of tests/simulation/test_faults.py.)"""
    one = session()
    offer(one, 3, 10, 98, confirmed=3)
    step(one, 1, 10, 20)
    assert Offered(3, 0) == offer(one, 5, 30, 40, 50, confirmed=5)
    assert Offered(0, 2) == offer(one, 3, 10, 98, confirmed=3)
    assert Offered(0, 1) == offer(one, 5, 97, confirmed=4, last=True)
    assert (False, [30, 40, 50]) == (one.complete, waiting(one))
    assert Offered(1, 0) == offer(one, 8, 60, confirmed=5)


def test_what_waits_and_is_contradicted_is_told_of() -> None:
    """Of five waiting tokens two are verified and the second refused: one refused is no news, of three that were left out the
    verdict says so, and the next draft's answer counts them among the stale."""
    one = session()
    offer(one, 3, 4, 5, 6, 7, 8)
    one.take_draft(2)
    offer(one, 8, 9, confirmed=3)
    verdict = one.commit(StepResult(1, (4, 20)), 2)
    assert (2, 1, 3) == (verdict.drafted, verdict.accepted, verdict.trimmed)
    assert Offered(added=1, stale=4) == offer(one, 5, 21, confirmed=5)
    assert Offered(added=1, stale=0) == offer(one, 6, 22, confirmed=5)


def test_chances_are_those_of_what_waits_now() -> None:
    """Survivals count from each draft's own position, chances from the token before; nobody says anything behind a draft that
    says nothing."""
    one = session()
    offer(one, 3, 4, 5, confirmed=3, survival=(0.8, 0.4))
    offer(one, 5, 6, confirmed=3, survival=(0.5,))
    assert (0.8, 0.5, 0.5) == pytest.approx(one.chances)
    offer(one, 6, 7, confirmed=3)
    offer(one, 7, 8, confirmed=3, survival=(0.9,))
    assert (0.8, 0.5, 0.5) == pytest.approx(one.chances)
    offer(one, 6, 9, confirmed=3, survival=(0.9,))
    assert (0.8, 0.5, 0.5, 0.9) == pytest.approx(one.chances)
    one.take_draft(1)
    one.commit(StepResult(1, (4, 5)), 1)
    assert (0.5, 0.9) == pytest.approx(one.chances)
    offer(one, 5, 8, 9, confirmed=5, survival=(0.0, 0.0))
    assert (0.0, 0.0) == one.chances


# --- branches beside what waits --------------------------------------------------------------------------------------


def test_a_branch_beside_waits_until_the_text_goes_along_it() -> None:
    """It takes nothing from what waits; where the target's own token is its first, the rest of it waits, as a whole draft."""
    one = session()
    offer(one, 3, 4, 5, 6, 7, last=True)
    assert Offered(0, 0) == offer(one, 4, 8, 10, 11, confirmed=3, last=True, beside=True)
    assert ([4, 5, 6, 7], True) == (waiting(one), one.complete)

    step(one, 1, 4, 8)

    assert ([10, 11], True) == (waiting(one), one.complete)


def test_branches_that_the_text_does_not_go_along_are_stale() -> None:
    """Told of with the next message, like what waited."""
    one = session()
    offer(one, 3, 4, 5, 6, 7, last=True)
    offer(one, 3, 8, 8, confirmed=3, last=True, beside=True)
    offer(one, 4, 8, 8, 8, confirmed=3, last=True, beside=True)

    step(one, 1, 4, 10)

    assert ([], False) == (waiting(one), one.complete)
    assert Offered(1, 5) == offer(one, 5, 11)


def test_a_branch_that_stands_on_what_was_wrong_is_over() -> None:
    """Whatever the text says at its place later: another one was taken, or none was."""
    for first in (8, 7):
        one = session()
        offer(one, 3, 4, 5, 6, 7, last=True)
        offer(one, 4, first, 10, 11, confirmed=3, last=True, beside=True)
        offer(one, 5, 12, 13, confirmed=3, last=True, beside=True)

        step(one, 1, 4, 8)
        step(one, 0, 12, drafted=len(waiting(one)))

        assert [] == waiting(one)


def test_a_branch_about_a_later_place_waits_on() -> None:
    """A step may have verified a part of the draft only."""
    one = session()
    offer(one, 3, 4, 5, 6, 7, last=True)
    offer(one, 6, 8, 10, confirmed=3, last=True, beside=True)

    step(one, 1, 4, 5, drafted=1)
    assert [6, 7] == waiting(one)
    step(one, 1, 6, 8, drafted=2)

    assert [10] == waiting(one)


def test_a_branch_that_comes_too_late_is_an_ordinary_draft() -> None:
    """The text has decided meanwhile: the verifier may be waiting for just that."""
    one = session()
    offer(one, 3, 4, 5, 6, 7, last=True)
    step(one, 1, 4, 8)

    assert Offered(0, 2) == offer(one, 3, 9, 9, confirmed=3, last=True, beside=True)
    assert Offered(2, 0) == offer(one, 4, 8, 10, 11, confirmed=3, last=True, beside=True)

    assert ([10, 11], True) == (waiting(one), one.complete)


def test_what_goes_on_from_another_branch_does_not_disturb_the_one_taken() -> None:
    """Its drafter did not know yet; once it does, it goes on from the branch."""
    one = session()
    offer(one, 3, 4, 5, 6, 7, last=True)
    offer(one, 4, 8, 10, 11, confirmed=3, last=True, beside=True)
    step(one, 1, 4, 8)

    assert Offered(0, 2) == offer(one, 7, 2, 2, confirmed=3)
    assert Offered(0, 2) == offer(one, 6, 12, 13, confirmed=3, beside=True)
    assert Offered(1, 0) == offer(one, 7, 1, confirmed=5)

    assert [10, 11, 1] == waiting(one)
    step(one, 1, 10, 12, drafted=3)
    assert [] == waiting(one)


def test_branches_kept_are_bounded_and_given_up_with_the_session() -> None:
    """One too many is stale at once."""
    one = session()
    offer(one, 3, 4, 5)
    for number in range(MAX_BRANCHES):
        assert Offered(0, 0) == offer(one, 4, 20 + number, 1, confirmed=3, beside=True)
    assert Offered(0, 2) == offer(one, 4, 7, 1, confirmed=3, beside=True)
    assert 2 + 2 * MAX_BRANCHES == one.abandon()


def test_a_branch_beside_needs_a_text_that_can_be_but_one() -> None:
    """By rejection no token is the only one that a verdict may say."""
    with pytest.raises(InvalidRequest, match="beside"):
        offer(session(temperature=1.0), 3, 4, beside=True)
