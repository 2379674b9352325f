"""Which slot a request gets, and how much of its prompt is there already."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EMPTY = np.zeros(0, np.int32)


class Place(NamedTuple):
    """A slot taken for a prompt: the first `common` tokens of the prompt lie in slot `source` (perhaps the same)."""

    slot: int
    source: int
    common: int


class Slots:
    """The token ids whose keys and values each slot holds, and which slots are free."""

    def __init__(self, count: int) -> None:
        self._held = [EMPTY] * count
        self._free = list(range(count))  # least recently used first

    @property
    def free(self) -> int:
        """How many slots are free."""
        return len(self._free)

    def take(self, prompt: np.ndarray) -> Place | None:
        """Take a free slot for a prompt; None where there is none.

        The last token of a prompt is always run, so it is never counted as common.
        """
        if not self._free:
            return None
        shared = [common_prefix(held, prompt[:-1]) for held in self._held]
        slot, source = self._choose(shared)
        self._free.remove(slot)
        self._held[slot] = prompt[: shared[source]]
        return Place(slot, source, shared[source])

    def fill(self, slot: int, tokens: np.ndarray) -> None:
        """Say what a taken slot holds now."""
        self._held[slot] = tokens

    def give_back(self, slot: int) -> None:
        """Free a slot; what it holds stays, for the next prompt that begins the same."""
        self._free.append(slot)

    def clear(self) -> None:
        """Forget what every slot holds."""
        self._held = [EMPTY] * len(self._held)

    def _choose(self, shared: list[int]) -> tuple[int, int]:
        """Return the slot to take and the slot whose tokens to begin from.

        A prompt goes on in the free slot it shares most with, unless that would throw away more than it saves while an
        empty slot is at hand, or the shared part is common to several slots (a system prompt): then it is copied.
        """
        best = max(self._free, key=lambda slot: shared[slot])
        donor = max(range(len(shared)), key=lambda slot: shared[slot])
        most = shared[donor]
        empty = next((slot for slot in self._free if not len(self._held[slot])), None)
        lost = len(self._held[best]) - shared[best]
        goes_on = shared[best] == most and (lost <= most or (empty is None and shared.count(most) == 1))
        if goes_on and most:
            return best, best
        target = self._free[0] if empty is None else empty
        return target, target if shared[target] == most else donor


def common_prefix(first: np.ndarray, second: np.ndarray) -> int:
    """Return how many tokens two sequences begin with in common."""
    length = min(len(first), len(second))
    different = first[:length] != second[:length]
    return int(different.argmax()) if different.any() else length
