"""What a drafter believes: confirmed text, guesses ahead, and how many of them were sent."""

from __future__ import annotations

from drafter.branch import Branch
from drafter.speculators import Guess


def guesses(*tokens: int) -> list[Guess]:
    return [Guess(token) for token in tokens]


def branch(text: tuple[int, ...] = (1, 2), *ahead: int, sent: int = 0) -> Branch:
    one = Branch(text)
    assert len(ahead) == one.land(len(text), one.version, guesses(*ahead))
    one.sent = sent
    return one


def test_a_new_branch_is_its_text() -> None:
    """Nothing guessed, nothing sent."""
    one = branch()
    assert ([1, 2], 2, (2, [])) == (one.belief, one.end, one.unsent())


def test_guesses_land_behind_the_text() -> None:
    """They are believed, and unsent until somebody says so."""
    one = branch((1, 2), 3, 4)
    assert ([1, 2, 3, 4], 4) == (one.belief, one.end)
    assert (2, guesses(3, 4)) == one.unsent()
    one.sent = 1
    assert (3, guesses(4)) == one.unsent()


def test_a_confirmed_guess_becomes_text() -> None:
    """What was sent goes down with it; the belief and its end stay."""
    one = branch((1, 2), 3, 4, 5, sent=2)
    assert [] == one.confirm([3]).dropped
    assert ([1, 2, 3], [1, 2, 3, 4, 5], 1, 5) == (one.text, one.belief, one.sent, one.end)
    assert [] == one.confirm([4, 5, 6]).dropped
    assert ([1, 2, 3, 4, 5, 6], [], 0) == (one.text, one.ahead, one.sent)


def test_a_confirmed_guess_that_was_not_sent_counts_none() -> None:
    """The target may get there by itself; `sent` never goes below none."""
    one = branch((1, 2), 3, 4, sent=0)
    one.confirm([3])
    assert (0, (3, guesses(4))) == (one.sent, one.unsent())


def test_a_contradiction_drops_the_branch() -> None:
    """All guesses go, sent or not, and those still being made for the old branch will be of no use."""
    one = branch((1, 2), 3, 4, 5, sent=2)
    version = one.version
    assert guesses(4, 5) == one.confirm([3, 9]).dropped
    assert ([1, 2, 3, 9], [], 0) == (one.belief, one.ahead, one.sent)
    assert 0 == one.land(5, version, guesses(6))
    assert [] == one.ahead


def test_tokens_without_guesses_are_no_contradiction() -> None:
    """Where nothing was guessed, nothing is dropped, and guesses under way may still turn out right."""
    one = branch()
    assert [] == one.confirm([3, 4]).dropped
    assert 2 == one.land(2, 0, guesses(3, 4, 5, 6))
    assert [1, 2, 3, 4, 5, 6] == one.belief


def test_guesses_that_the_text_has_overtaken_are_compared() -> None:
    """Those that agree have done their part; one that does not spoils the rest."""
    one = branch()
    one.confirm([3, 4])
    assert 0 == one.land(2, 0, guesses(3, 9, 5))
    assert 0 == one.land(2, 0, guesses(3, 4))
    assert 0 == one.land(2, 0, guesses(3))
    assert [] == one.ahead
    assert 1 == one.land(4, 0, guesses(5))


def test_dropping_is_counted() -> None:
    """`drop` says how many, and makes a new version even of an empty branch."""
    one = branch((1, 2), 3, 4, sent=1)
    assert (2, 0) == (one.drop(), one.drop())
    assert (2, 0, 2) == (one.version, one.sent, one.end)


def test_guesses_on_their_way_may_be_contradicted_before_they_land() -> None:
    """By a text that grew over them and says otherwise, or by the end of the branch they stand on; not by one that agrees."""
    one = branch((1, 2), 3, sent=1)
    base, version = one.end, one.version
    assert not one.contradicts(base, version, [4, 5])
    one.confirm([3, 4])
    assert not one.contradicts(base, version, [4, 5])
    one.confirm([6])
    assert one.contradicts(base, version, [4, 5])
    assert not one.contradicts(base, version, [4])
    one.drop()
    assert one.contradicts(base, version, [4])


def test_a_branch_beside_is_taken_where_the_text_goes_along_it() -> None:
    """As on the verifier: what follows the target's token is ahead now, and sent; the other branches are over."""
    one = branch((1, 2), 3, 4, 5, 6, sent=4)
    one.beside = [(2, guesses(7, 7)), (3, guesses(8, 9, 9))]

    settled = one.confirm([3, 8], accepted=1, drafted=4)

    assert settled.taken
    assert ([1, 2, 3, 8, 9, 9], 4, 2) == (one.belief, one.known, one.sent)
    assert (guesses(7, 7), guesses(8)) == (list(settled.beside), list(settled.overtaken))
    assert (guesses(3), guesses(4, 5, 6), []) == (list(settled.accepted), list(settled.refused), one.beside)


def test_branches_beside_are_over_where_the_text_goes_another_way() -> None:
    """Contradicted by the draft itself or by the target's token; one about a later place stays."""
    one = branch((1, 2), 3, 4, 5, sent=3)
    one.beside = [(2, guesses(7)), (4, guesses(8, 9))]
    settled = one.confirm([3, 4], accepted=1, drafted=1)
    assert (guesses(7), False, [5]) == (list(settled.beside), settled.taken, one.belief[one.known :])
    settled = one.confirm([6], accepted=0, drafted=1)
    assert (guesses(8, 9), False, [], [1, 2, 3, 4, 6]) == (list(settled.beside), settled.taken, one.beside, one.belief)


def test_branches_beside_end_with_the_session() -> None:
    """Nothing was made of them."""
    one = branch((1, 2), 3, sent=1)
    one.beside = [(2, guesses(7, 8))]
    assert guesses(7, 8) == list(one.finish().beside)
    assert [] == one.beside
