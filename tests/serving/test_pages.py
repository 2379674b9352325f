"""The store of pages against what it promises, over random lives of sequences."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.pages import PageStore, Sequence

SIZE, PAGES = 4, 12


def tokens(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


class Lives(RuleBasedStateMachine):
    """Sequences of few different tokens begin, run, grow and end in a small store.

    `content` is what the pages of a real store would hold: for each the tokens up to its end, as they were written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.store = PageStore(PAGES, SIZE)
        self.sequences: list[Sequence] = []
        self.content: dict[int, tuple[int, ...]] = {}

    def find(self, sequence: Sequence) -> None:
        """Find, and copy as a real store would."""
        begun = sequence.held
        found, copy = self.store.find(sequence)
        assert found == sequence.held - begun
        if copy:
            source, target = copy
            self.content[target] = self.content[source][: sequence.held]

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=30))
    def begin(self, prompt: list[int]) -> None:
        sequence = Sequence(tokens(*prompt))
        self.find(sequence)
        assert sequence.held <= max(0, len(prompt) - 1)
        if self.store.reserve(sequence, len(prompt)):
            self.sequences.append(sequence)
        else:
            assert self.store.pages_for(len(prompt)) - len(sequence.pages) > self.store.free
            self.store.end(sequence)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), count=st.integers(1, 9))
    def run_on(self, data: st.DataObject, count: int) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        self.find(sequence)
        held = min(sequence.held + count, len(sequence.tokens))
        for place in range(sequence.held, held):
            page = sequence.pages[place // SIZE]
            self.content[page] = (
                *sequence.tokens[: place // SIZE * SIZE],
                *sequence.tokens[place // SIZE * SIZE : place + 1],
            )
        self.store.fill(sequence, held)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=6))
    def grow(self, data: st.DataObject, more: list[int]) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        if self.store.reserve(sequence, len(sequence.tokens) + len(more)):
            sequence.tokens = np.concatenate([sequence.tokens, tokens(*more)])

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        self.sequences.remove(sequence)
        self.store.end(sequence)

    @invariant()
    def each_sequence_finds_its_own_tokens(self) -> None:
        for sequence in self.sequences:
            for place in range(0, sequence.held, SIZE):
                end = min(place + SIZE, sequence.held)
                content = self.content[sequence.pages[place // SIZE]]
                assert content[:end] == tuple(sequence.tokens[:end])

    @invariant()
    def a_page_that_is_not_full_has_one_owner(self) -> None:
        held = Counter(page for sequence in self.sequences for page in sequence.pages)
        full = {page for sequence in self.sequences for page in sequence.pages[: sequence.held // SIZE]}
        assert all(count == 1 for page, count in held.items() if page not in full)
        assert self.store.free == PAGES - len(held)

    @invariant()
    def what_is_held_is_found_again(self) -> None:
        """All of it where there is a page to copy from and one to copy to, and what is full in any case."""
        for sequence in self.sequences:
            again = Sequence(np.append(sequence.tokens[: sequence.held], 9).astype(np.int32))
            before, full = self.store.free, sequence.held // SIZE
            self.find(again)
            assert again.held == sequence.held if before > 1 else again.held >= full * SIZE
            assert again.pages[:full] == sequence.pages[:full]
            self.store.end(again)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def stored(store: PageStore, *values: int) -> Sequence:
    sequence = Sequence(tokens(*values))
    store.find(sequence)
    assert store.reserve(sequence, len(values))
    store.fill(sequence, len(values))
    return sequence


def test_the_least_recently_used_goes_first_and_its_end_before_its_beginning() -> None:
    store = PageStore(5, 2)
    for values in ((1, 1, 2, 2), (3, 3, 4, 4)):
        store.end(stored(store, *values))
    store.end(stored(store, 1, 1, 9))  # used again
    taken = Sequence(tokens(5))
    assert store.reserve(taken, 2)
    found = [store.find(Sequence(tokens(*values, 0))).tokens for values in ((1, 1, 2, 2), (3, 3, 4, 4))]
    assert found == [2, 4]  # of the first sequence the last page is the one used longest ago


def test_prompts_run_at_the_same_time_end_up_in_the_same_pages() -> None:
    store = PageStore(4, 2)
    one, other = Sequence(tokens(1, 1, 2, 2)), Sequence(tokens(1, 1, 2, 2))
    for sequence in (one, other):
        assert store.reserve(sequence, 4)
    for sequence in (one, other):
        store.fill(sequence, 4)
    assert one.pages == other.pages and store.free == 2
    store.end(one)
    assert store.free == 2
