"""The page policy's particular promises; tests/properties holds it to the general ones."""

from __future__ import annotations

import pytest

from specfleet.core.errors import InternalError, Overloaded
from specfleet.engine.pages import PAGE_SIZE, PageTable


def text(count: int, first: int = 0) -> list[int]:
    return list(range(first, first + count))


def table_with(tokens: list[int], total: int = 8) -> PageTable:
    table = PageTable(total)
    table.open(1, tokens)
    table.append(1, tokens)
    return table


def test_a_closed_text_is_found_again_but_for_its_last_token() -> None:
    """Of 48 cached tokens, a prompt of the same 48 gets two pages: the last token's logits still have to be computed."""
    table = table_with(text(48))
    table.close(1)

    assert table.open(2, text(48)) == 32
    assert table.open(3, text(49)) == 48
    assert (table.counters.prefix_queries - 48, table.counters.prefix_hits) == (97, 80)


def test_a_living_text_is_shared_once_its_next_step_begins() -> None:
    """Pages of an open sequence are offered when the tokens are known to have survived: at its next append."""
    table = table_with(text(33))

    assert table.open(2, text(40)) == 0
    table.append(1, [33])
    assert table.open(3, text(40)) == 32
    assert [table.block_table(1)[:2]] == [table.block_table(3)]


def test_a_refused_draft_never_enters_the_cache() -> None:
    """A page completed by guesses that were rolled back is not found by anyone."""
    table = table_with(text(10))
    table.append(1, text(10, first=10))
    table.truncate(1, 12)
    table.append(1, [90])
    table.close(1)

    assert table.open(2, text(20)) == 0


def test_a_shared_page_is_copied_before_it_is_written() -> None:
    """Two sequences share a page; the one that rolls back into it and goes on gets its own."""
    table = table_with(text(20))
    table.append(1, [20])
    table.open(2, text(20))
    shared = table.block_table(2)[0]
    table.truncate(2, 5)

    assert table.pages_needed(2, 1) == 1
    ((source, destination),) = table.append(2, [70])
    assert (shared, shared) == (source, table.block_table(1)[0])
    assert destination == table.block_table(2)[0] != shared


def test_a_page_only_the_cache_knows_is_overwritten_without_a_copy() -> None:
    """Rolling back into one's own cached page costs nothing, and the old text is no longer found."""
    table = table_with(text(20))
    table.append(1, [20])
    table.truncate(1, 5)

    assert table.pages_needed(1, 1) == 0
    assert table.append(1, [70]) == []
    table.close(1)
    assert table.open(2, text(20)) == 0


def test_the_oldest_cached_pages_go_first_and_a_chain_goes_from_its_end() -> None:
    """Eviction takes the least recently closed text's last page first, so what stays of it is still a prefix."""
    table = table_with(text(48), total=6)
    table.close(1)
    table.open(2, text(48, first=50))
    table.append(2, text(48, first=50))
    table.append(2, [98])

    assert table.counters.evictions == 1
    assert table.open(3, text(60)) == 32


def test_out_of_pages_is_refused_before_anything_changes() -> None:
    """An append that does not fit raises Overloaded with the figures, and the table is as it was."""
    table = table_with(text(20), total=3)

    with pytest.raises(Overloaded, match="needs 2 KV pages and 1 of 3 are free"):
        table.append(1, text(PAGE_SIZE + 13))
    assert (table.length(1), table.free_pages) == (20, 1)
    table.check_integrity()


def test_misuse_names_the_sequence() -> None:
    """Unknown and doubly opened sequences, and cuts beyond the end, are our own errors and say which sequence."""
    table = table_with(text(5))

    with pytest.raises(InternalError, match="sequence 9 is not open"):
        table.append(9, [1])
    with pytest.raises(InternalError, match="sequence 1 is already open"):
        table.open(1, [1])
    with pytest.raises(InternalError, match="sequence 1 has 5 tokens, cannot be cut to 6"):
        table.truncate(1, 6)


def test_check_integrity_notices_a_lost_page() -> None:
    """A count that is off by one is found and named."""
    table = table_with(text(5))
    table._references[table.block_table(1)[0]] += 1

    with pytest.raises(InternalError, match="reference counts"):
        table.check_integrity()
