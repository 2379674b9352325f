"""SFT rows that begin alike as one sequence: what they share is computed once, at the same loss and gradients.

The rows of one trajectory are nested prefixes of the same history, each with a closing and targets of its own, and they
stand next to each other where they are made. Neighbours that share enough become a tree (`rl.tree`) with one response
a cut: the row from its first target to its last. Laid out without any padding a tree is one flat sequence,

    [ trunk | closings | responses ]

whose tokens say by spans of indices what they see. So trees are packed as rows are, many into a sequence of one static
length, and a run compiles one program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from rl.cuts import shared
from rl.data import Batches, Stores, fitting, packed
from rl.tree import Cut, Layout, Tree, TreeBatch, lay_out

SHARED = 0.5  # of the shorter prompt: rows that share less are not of one trajectory, or not worth a tree


def trunk_batches(
    stores: Stores,
    mix: Mapping[str, float],
    length: int,
    batch: int,
    seed: int,
    *,
    cuts: int,
    left_out: Sequence[int] | None = None,
) -> Batches:
    """Return endless batches like `rl.data.batches`, in which up to `cuts` neighbouring rows of a kind share a trunk.

    Each batch has `tokens`, `targets`, `weights` and `positions`, all [batch, length], and of each token the `spans`
    [batch, length, 3, 2] of indices that it sees (see `comem_jax.models.spans`). The proportions of `mix` are those of
    rows, what is too long is shortened or refused as there, and the order depends on the seed alone.
    """
    rows = {kind: fitting(stores, kind, length, left_out) for kind in mix}
    trees = {kind: grain.MapDataset.source(Trunks(each, length, cuts)) for kind, each in rows.items()}
    # A tree counts for all its rows, so that fewer of them are drawn.
    shares = {kind: share * len(trees[kind]) / len(rows[kind]) for kind, share in mix.items()}
    return packed(trees, shares, length, seed).map(_placed).batch(batch, drop_remainder=True)


class Trunks:
    """Trees of at most `cuts` neighbouring rows and `length` tokens; a Grain source (`len`, `[]`) of flat sequences.

    `rows` has `len` and `[]` as `rl.data.RowStore` does. Every row is in one tree.
    """

    def __init__(self, rows: Any, length: int, cuts: int) -> None:
        self._rows = rows
        self._ends = _part(rows, length, cuts)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        start = self._ends[index - 1] if index else 0
        return _flat([Row.of(self._rows[number]) for number in range(start, self._ends[index])])


class Row(NamedTuple):
    """A row as what is only read, then all from its first target to its last, with the weight of each token."""

    prompt: np.ndarray
    response: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, row: Mapping[str, np.ndarray]) -> Row:
        """Take a stored row apart; what follows its last target is seen by none and left out."""
        tokens, loss = row["tokens"], row["loss"]
        targets = np.flatnonzero(loss[1:]) + 1  # there is nothing that the first token could be guessed from
        first, end = (targets[0], targets[-1] + 1) if len(targets) else (len(tokens), len(tokens))
        return cls(tokens[:first], tokens[first:end], loss[first:end])


def _part(rows: Any, length: int, cuts: int) -> np.ndarray:
    """Return where each tree's rows end: a row joins the tree before it as long as it fits and shares enough."""
    ends: list[int] = []
    group: list[Row] = []
    for number in range(len(rows)):
        row = Row.of(rows[number])
        if group and not _joins(group, row, length, cuts):
            ends.append(number)
            group = []
        group.append(row)
    return np.asarray([*ends, len(rows)])


def _joins(group: list[Row], row: Row, length: int, cuts: int) -> bool:
    if len(group) == cuts:
        return False
    longest = max((each.prompt for each in group), key=len)
    enough = SHARED * min(len(longest), len(row.prompt))
    return shared(longest, row.prompt) >= enough and _size([*group, row]) <= length


def _cut(group: list[Row]) -> tuple[np.ndarray, list[int]]:
    """Return what some rows' prompts begin with, and how far each follows it."""
    # A prompt's last token is never the trunk's: it stands with the response, whose first token is read from it.
    trunk = max((row.prompt for row in group), key=len)[:-1]
    return trunk, [shared(trunk, row.prompt[:-1]) for row in group]


def _size(group: list[Row]) -> int:
    """Return how many tokens some rows have as one tree."""
    trunk, ats = _cut(group)
    return len(trunk) + sum(len(row.prompt) - 1 - at + len(row.response) for row, at in zip(group, ats, strict=True))


def _tree(group: list[Row]) -> Tree:
    trunk, ats = _cut(group)
    cuts = [Cut(at, row.prompt[at:].tolist(), [row.response.tolist()]) for row, at in zip(group, ats, strict=True)]
    return Tree(trunk.tolist(), cuts)


def _flat(group: list[Row]) -> dict[str, np.ndarray]:
    """Return rows as one tree without padding: `tokens`, `targets`, `weights`, `positions` [length] and `spans`."""
    tree = _tree(group)
    layout = Layout.fit([tree], multiple=1, slot_multiple=1)
    laid = TreeBatch(*(array[0] for array in lay_out([tree], layout)))
    targets, weights = np.zeros(layout.length, np.int32), np.zeros(layout.length, np.float32)
    targets[layout.prompt :] = laid.targets.ravel()
    weights[layout.prompt :][laid.mask.ravel() > 0] = np.concatenate([row.weights for row in group])
    used = laid.spans[:, -1, 0] < laid.spans[:, -1, 1]  # every token sees itself, a slot's padding nothing
    place = np.append(0, np.cumsum(used)).astype(np.int32)  # where an index goes when the padding is left out
    arrays = {"tokens": laid.tokens, "targets": targets, "weights": weights, "positions": laid.positions}
    return {name: array[used] for name, array in arrays.items()} | {"spans": place[laid.spans[used]]}


def _placed(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a packed sequence under the names of a batch, each tree's spans moved to where the tree now begins."""
    begin = np.arange(len(row["tokens"]), dtype=np.int32) - row["tokens_positions"]
    kept = {name: row[name] for name in ("tokens", "targets", "weights", "positions")}
    return kept | {"spans": row["spans"] + begin[:, None, None]}
