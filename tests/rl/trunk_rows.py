"""What the tokens of trees see, read back as rows, and the same rows as packed sequences of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rl.data import RowStore

Seen = tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]  # tokens read; targets, and their weights


def make_store(rows: list[dict[str, np.ndarray]]) -> RowStore:
    tokens, loss = (np.concatenate([row[name] for row in rows]) for name in ("tokens", "loss"))
    return RowStore(tokens, loss, np.cumsum([len(row["tokens"]) for row in rows]))


def seen(sequence: dict[str, np.ndarray]) -> Iterator[Seen]:
    """Yield every row of one flat sequence of trees, as the last token of its response sees it.

    On the way every token is checked to see a sequence whose positions are 0, 1, ... up to its own.
    """
    spans, weights, positions = sequence["spans"], sequence["weights"], sequence["positions"]
    own = spans[:, 2]
    for i in np.flatnonzero(own[:, 0] < own[:, 1]):
        visible = np.concatenate([np.arange(*span) for span in spans[i]])
        assert visible[-1] == i
        assert positions[visible].tolist() == list(range(positions[i] + 1))
        response = np.arange(own[i, 0], i + 1)
        if weights[response].any() and (i + 1 == len(own) or own[i + 1, 0] != own[i, 0]):
            read = sequence["tokens"][visible]
            yield tuple(map(tuple, (read.tolist(), sequence["targets"][response], weights[response].tolist())))


def stored(row: dict[str, np.ndarray]) -> Seen:
    """What `seen` should find of a row with targets."""
    targets = np.flatnonzero(row["loss"][1:]) + 1
    whole = slice(targets[0], targets[-1] + 1)
    read = row["tokens"][: targets[-1]]
    return tuple(map(tuple, (read.tolist(), row["tokens"][whole], row["loss"][whole].tolist())))


def as_packed_rows(batch: dict[str, np.ndarray], count: int, length: int) -> dict[str, np.ndarray]:
    """The rows of a batch of trees as `rl.data.batches` names them, each in one of `count` sequences of its own."""
    rows = [row for i in range(len(batch["tokens"])) for row in seen({name: x[i] for name, x in batch.items()})]
    assert 1 < len(rows) <= count
    made: dict[str, Any] = {name: np.zeros((count, length), np.int32) for name in ("tokens", "targets", "segments")}
    made["weights"] = np.zeros((count, length), np.float32)
    made["positions"] = np.tile(np.arange(length, dtype=np.int32), (count, 1))
    for i, (read, targets, weights) in enumerate(rows):
        end = len(read)
        made["tokens"][i, :end], made["segments"][i, :end] = read, 1
        made["targets"][i, end - len(targets) : end] = targets
        made["weights"][i, end - len(targets) : end] = weights
    return made
