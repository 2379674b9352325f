"""What a round of decoding reads of the pages: each row's own alone, and what many rows have in common once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from comem_jax.models.pages import Reads

TOGETHER = 16  # rows that read a shared page at once
FEWEST = 4  # rows that share pages, below which each reads them for itself
SPAN = 8  # pages of one read
WIDEST = 16  # reads of a chunk: what is gathered of their pages, half as many then, stays in a core's cache

Run = tuple[Sequence[int], list[int]]  # rows, and the pages that all of them read


def shared_runs(pages: Sequence[Sequence[int]], fewest: int = FEWEST) -> tuple[list[Run], list[int]]:
    """Part rows' pages into runs that at least `fewest` rows have in common, and how many of each row's those are."""
    begun = [0] * len(pages)

    def split(rows: list[int], start: int) -> Iterator[Run]:
        """Yield what `rows`, which agree on their first `start` pages, have in common, and then parts of them have."""
        groups: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            if len(pages[row]) > start:
                groups[pages[row][start]].append(row)
        for group in groups.values():
            if len(group) >= fewest:
                end = _common(pages, group, start)
                for row in group:
                    begun[row] = end
                yield group, list(pages[group[0]][start:end])
                yield from split(group, end)

    return list(split(list(range(len(pages))), 0)), begun


def _common(pages: Sequence[Sequence[int]], rows: Sequence[int], start: int) -> int:
    """Return how many pages some rows begin with in common; they do up to `start` at least."""
    shortest = min(len(pages[row]) for row in rows)
    table = np.array([pages[row][start:shortest] for row in rows])
    different = np.flatnonzero((table != table[0]).any(axis=0))
    return start + int(different[0]) if len(different) else shortest


class ReadPlan:
    """The arrays of `Reads` for batches, of sizes that depend on nothing but the batch's."""

    def __init__(self, size: int, window: int) -> None:
        self._size = size
        self._window = window

    def chunk(self, pages: Sequence[int], held: int) -> Reads:
        """Return the reads of one prompt, all of whose next tokens read the `held` tokens in its `pages`."""
        arrays = _Arrays(self._longest(), 0, self._size)
        arrays.add(pages, held, ())
        return arrays.in_chunks(1)._replace(readers=None)

    def round(self, pages: Sequence[Sequence[int]], held: Sequence[int], batch: int) -> tuple[Reads, Reads]:
        """Return what a batch's rows read, each alone and many together; row i has `held[i]` tokens in `pages[i]`."""
        runs, begun = shared_runs([row[: tokens // self._size] for row, tokens in zip(pages, held, strict=True)])
        return self._alone(pages, held, begun, batch), self._together(runs, batch)

    def _alone(self, pages: Sequence[Sequence[int]], held: Sequence[int], begun: Sequence[int], batch: int) -> Reads:
        width, span = min(max(batch, 4), WIDEST), SPAN if batch < WIDEST else SPAN // 2
        arrays = _Arrays(-(-batch * self._longest(span) // width) * width, 1, self._size, span)
        for row, (own, tokens, start) in enumerate(zip(pages, held, begun, strict=True)):
            arrays.add(own[start:], tokens - start * self._size, [row])
        return arrays.in_chunks(width)

    def _together(self, runs: Sequence[Run], batch: int) -> Reads:
        # A run of p pages of g rows takes at most g / FEWEST x (p / SPAN + 1) reads, and a row has fewer runs than rows
        # are in the batch.
        arrays = _Arrays(batch * (self._longest() + batch) // FEWEST + 1, TOGETHER, self._size)
        for rows, pages in runs:
            for start in range(0, len(rows), TOGETHER):
                arrays.add(pages, len(pages) * self._size, rows[start : start + TOGETHER])
        return arrays.in_chunks(1)

    def _longest(self, span: int = SPAN) -> int:
        """Return how many reads one row may need."""
        return -(-self._window // (self._size * span))


class _Arrays:
    """Reads being filled: `places` `[reads, span]`, `valid` `[reads]` and `readers` `[reads, R]`."""

    def __init__(self, reads: int, readers: int, size: int, span: int = SPAN) -> None:
        self.places, self.valid = np.zeros((reads, span), np.int32), np.zeros(reads, np.int32)
        self.readers = np.full((reads, readers), -1, np.int32)
        self.used = 0
        self._size, self._span = size, span

    def add(self, pages: Sequence[int], tokens: int, readers: Sequence[int]) -> None:
        """Add reads of the pages that hold so many tokens, `span` pages each."""
        span, room = self._span, self._size * self._span
        first, self.used = self.used, self.used - (-tokens // room)
        needed = pages[: -(-tokens // self._size)]
        self.places.reshape(-1)[first * span : first * span + len(needed)] = needed
        self.valid[first : self.used] = np.minimum(room, tokens - room * np.arange(self.used - first))
        self.readers[first : self.used, : len(readers)] = readers

    def in_chunks(self, width: int) -> Reads:
        """Return them in chunks of `width` reads."""
        places, valid, readers = (
            x.reshape(len(x) // width, width, *x.shape[1:]) for x in (self.places, self.valid, self.readers)
        )
        return Reads(places, valid, np.int32(-(-self.used // width)), readers)
