"""What a round reads: every token of every row once, and what many rows share once for all of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.reads import FEWEST, SPAN, TOGETHER, ReadPlan, shared_runs

SIZE, WINDOW = 4, 200


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Rows of pages that begin alike here and there, and how many tokens each has in them."""
    pages: list[list[int]] = []
    held = []
    fresh = iter(range(10_000))
    for _ in range(draw(st.integers(1, 24))):
        like = draw(st.sampled_from(pages)) if pages and draw(st.booleans()) else []
        common = like[: draw(st.integers(0, len(like)))]
        own = [next(fresh) for _ in range(draw(st.integers(0 if common else 1, WINDOW // SIZE - len(common))))]
        full = len(common) * SIZE
        pages.append(common + own)
        held.append(draw(st.integers(full, full + len(own) * SIZE)))
    return pages, held


@given(rows())
@settings(max_examples=150, deadline=None)
def test_every_token_is_read_once_by_its_row(drawn: tuple[list[list[int]], list[int]]) -> None:
    pages, held = drawn
    batch = 1 << (len(pages) - 1).bit_length()
    read: list[list[tuple[int, int]]] = [[] for _ in pages]
    for reads in ReadPlan(SIZE, WINDOW).round(pages, held, batch):
        chunks = zip(reads.pages[: reads.count], reads.valid[: reads.count], reads.readers[: reads.count], strict=True)
        for places, valid, readers in chunks:
            for place, count, some in zip(places, valid, readers, strict=True):
                for row in some[some >= 0]:
                    read[row] += [(int(place[at // SIZE]), at % SIZE) for at in range(count)]
        assert reads.readers[reads.count :].max(initial=-1) == -1
    for row, (own, tokens) in enumerate(zip(pages, held, strict=True)):
        assert sorted(read[row]) == sorted((own[at // SIZE], at % SIZE) for at in range(tokens))


def test_what_many_share_is_read_once() -> None:
    prompt, system = list(range(100, 100 + 2 * SPAN)), [1, 2, 3]
    group = [[*system, *prompt, 200 + row] for row in range(TOGETHER)]
    others = [[*system, 300 + row] for row in range(FEWEST)]
    runs, begun = shared_runs(group + others)
    assert [(len(run_rows), pages) for run_rows, pages in runs] == [
        (TOGETHER + FEWEST, system),
        (TOGETHER, prompt),
    ]
    assert begun == [len(system + prompt)] * TOGETHER + [len(system)] * FEWEST
    held = [len(row) * SIZE for row in group + others]
    alone, together = ReadPlan(SIZE, 400).round(group + others, held, 32)
    assert together.count == 2 + 2  # the system prompt for two parties of readers, and the prompt in two spans
    assert np.count_nonzero(alone.readers >= 0) == len(group + others)


def test_few_rows_read_for_themselves() -> None:
    assert shared_runs([[1, 2]] * (FEWEST - 1)) == ([], [0] * (FEWEST - 1))
