"""The page table under any sequence of operations: counts add up, and a cached prefix is really that prefix."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from specfleet.engine.pages import PAGE_SIZE, PageTable

TOTAL = 24
TOKENS = st.lists(st.integers(0, 1), max_size=40)
"""Two token values: texts collide often, as prompts do."""


class Pages(RuleBasedStateMachine):
    """Beside the table, a pool of plain Python lists that is written as the engine writes its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.table = PageTable(TOTAL)
        self.pool: list[list[int | None]] = [[None] * PAGE_SIZE for _ in range(TOTAL)]
        self.texts: dict[int, list[int]] = {}
        self.next_id = 0

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.texts)))

    @precondition(lambda self: len(self.texts) < 5)
    @rule(tokens=TOKENS.filter(bool))
    def open(self, tokens: list[int]) -> None:
        found = self.table.open(self.next_id, tokens)
        assert found < len(tokens)
        self.texts[self.next_id] = tokens[:found]
        self.next_id += 1

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), tokens=TOKENS)
    def append(self, data: st.DataObject, tokens: list[int]) -> None:
        sequence = self.pick(data)
        if not self.table.can_allocate([(sequence, len(tokens))]):
            return
        start = len(self.texts[sequence])
        for source, destination in self.table.append(sequence, tokens):
            self.pool[destination] = list(self.pool[source])
        pages = self.table.block_table(sequence)
        for position, token in enumerate(tokens, start):
            self.pool[pages[position // PAGE_SIZE]][position % PAGE_SIZE] = token
        self.texts[sequence] += tokens

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), back=st.integers(0, 40))
    def truncate(self, data: st.DataObject, back: int) -> None:
        sequence = self.pick(data)
        length = max(0, len(self.texts[sequence]) - back)
        self.table.truncate(sequence, length)
        del self.texts[sequence][length:]

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        self.table.close(sequence)
        del self.texts[sequence]

    @invariant()
    def counts_add_up(self) -> None:
        self.table.check_integrity()
        assert self.table.free_pages + self.table.used_pages == TOTAL

    @invariant()
    def every_sequence_reads_its_own_tokens(self) -> None:
        for sequence, text in self.texts.items():
            assert self.table.tokens(sequence) == text
            pages = self.table.block_table(sequence)
            assert [self.pool[pages[i // PAGE_SIZE]][i % PAGE_SIZE] for i in range(len(text))] == text

    def teardown(self) -> None:
        for sequence in list(self.texts):
            self.table.close(sequence)
        self.table.check_integrity()
        assert self.table.free_pages == TOTAL


TestPages = Pages.TestCase
TestPages.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
