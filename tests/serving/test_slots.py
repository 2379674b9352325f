from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.slots import Place, Slots, common_prefix


def ids(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def run(slots: Slots, text: str) -> Place:
    place = slots.take(ids(text))
    assert place is not None
    slots.fill(place.slot, ids(text)[:-1])
    slots.give_back(place.slot)
    return place


@given(st.text("ab"), st.text("ab"))
def test_common_prefix(first: str, second: str) -> None:
    count = common_prefix(ids(first), ids(second))
    assert first[:count] == second[:count]
    assert count == min(len(first), len(second)) or first[count] != second[count]


def test_a_conversation_goes_on_in_its_slot() -> None:
    slots = Slots(3)
    first = run(slots, "system A one")
    assert run(slots, "system A one two") == Place(first.slot, first.slot, len("system A on"))


def test_the_last_token_of_a_prompt_is_always_run() -> None:
    slots = Slots(1)
    run(slots, "same prompt!")
    assert run(slots, "same prompt").common == len("same promp")


def test_a_new_conversation_copies_what_it_shares_and_throws_nothing_away() -> None:
    slots = Slots(3)
    first = run(slots, "system: a long conversation")
    second = run(slots, "system: B")
    assert second.slot != first.slot
    assert (second.source, second.common) == (first.slot, len("system: "))
    assert run(slots, "system: a long conversation goes on").common == len("system: a long conversatio")


def test_a_prefix_is_copied_from_a_slot_at_work() -> None:
    slots = Slots(2)
    busy = slots.take(ids("shared prompt 1"))
    assert busy is not None
    slots.fill(busy.slot, ids("shared prompt"))
    place = slots.take(ids("shared prompt 2"))
    assert place == Place(1 - busy.slot, busy.slot, len("shared prompt"))
    assert slots.take(ids("shared prompt 3")) is None


def test_the_least_recently_used_slot_makes_room() -> None:
    slots = Slots(2)
    oldest = run(slots, "alpha....")
    run(slots, "beta.....")
    assert run(slots, "gamma....").slot == oldest.slot


def test_a_prompt_that_left_its_tail_behind_stays_when_no_slot_is_empty() -> None:
    slots = Slots(2)
    run(slots, "system B tail tail tail tail")
    own = run(slots, "system A tail tail tail tail")
    assert run(slots, "system A summary").slot == own.slot
