"""Training rows: where they are kept and how Grain packs them into batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grain
import numpy as np
from grain.experimental import FirstFitPackIterDataset

from comem_jax.errors import UserError, nearest
from rl.shorten import shorten

PACKING_BINS = 32  # sequences filled side by side: more pack tighter, fewer keep the order


@dataclass(frozen=True)
class Row:
    """Token ids [length] and the weight of each as a training target [length]; 0 where it is only read."""

    tokens: np.ndarray
    loss: np.ndarray


class RowStore:
    """Rows of one kind, stored end to end; a Grain source (`len`, `[]`)."""

    def __init__(self, tokens: np.ndarray, loss: np.ndarray, ends: np.ndarray) -> None:
        self.tokens, self.loss, self.ends = tokens, loss, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        span = slice(self.ends[index - 1] if index else 0, self.ends[index])
        return {"tokens": self.tokens[span].astype(np.int32), "loss": self.loss[span].astype(np.float32)}


Stores = Mapping[str, RowStore]
Batches: TypeAlias = grain.IterDataset[dict[str, np.ndarray]]


def save_rows(rows: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Write rows by kind into one `.npz` file, all at once."""
    arrays = {}
    for kind, items in rows.items():
        arrays[f"{kind}.tokens"] = np.concatenate([row.tokens for row in items]).astype(np.int32)
        arrays[f"{kind}.loss"] = np.concatenate([row.loss for row in items]).astype(np.float16)
        arrays[f"{kind}.ends"] = np.cumsum([len(row.tokens) for row in items])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new.npz")
    np.savez_compressed(temporary, allow_pickle=False, **arrays)
    temporary.replace(path)


def load_rows(path: Path) -> Stores:
    """Read rows by kind."""
    with np.load(path) as file:
        kinds = sorted({name.split(".")[0] for name in file.files})
        return {kind: RowStore(*(file[f"{kind}.{part}"] for part in ("tokens", "loss", "ends"))) for kind in kinds}


def batches(
    stores: Stores,
    mix: Mapping[str, float],
    length: int,
    batch: int,
    seed: int,
    *,
    left_out: Sequence[int] | None = None,
) -> Batches:
    """Return endless batches of packed rows, drawn from the kinds in the proportions of `mix`.

    Each batch has `tokens`, `targets`, `weights`, `segments` (0 is padding) and `positions`, all [batch, length]. Of a
    row longer than `length` + 1 the prompt's middle is replaced by the tokens `left_out`; without them, or where there
    is too little prompt to leave out, it is refused with a `UserError`. The order depends on the seed alone.
    """
    rows = {kind: fitting(stores, kind, length, left_out).map(_shift) for kind in mix}
    return packed(rows, mix, length, seed).map(_names).batch(batch, drop_remainder=True)


def packed(sources: Mapping[str, Any], mix: Mapping[str, float], length: int, seed: int) -> Batches:
    """Return endless sequences of `length` tokens, filled with what the sources hold in the proportions of `mix`.

    The sources are Grain map datasets of features [tokens, ...]. Beside each feature a sequence has the number of the
    element that a token is of, from 1 on (`NAME_segment_ids`, 0 is padding), and its place in it (`NAME_positions`).
    """
    drawn = [sources[kind].shuffle(seed=seed + i).repeat() for i, kind in enumerate(mix)]
    mixed = grain.MapDataset.mix(drawn, weights=list(mix.values()))
    lengths = dict.fromkeys(drawn[0][0], length)
    return FirstFitPackIterDataset(
        mixed.to_iter_dataset(), length_struct=lengths, num_packing_bins=PACKING_BINS, seed=seed
    )


def count_long(stores: Stores, kinds: Iterable[str], length: int) -> int:
    """Return how many rows of some kinds are too long to be packed into `length` tokens as they are."""
    return sum(len(_long(_store(stores, kind), length)) for kind in kinds)


def fit(row: dict[str, np.ndarray], length: int, left_out: Sequence[int]) -> dict[str, np.ndarray]:
    """Return a row with at most `length` + 1 tokens: a longer one loses the middle of what stands before its targets.

    Raises `UserError` where too little stands there.
    """
    if len(row["tokens"]) <= length + 1:
        return row
    targets = np.flatnonzero(row["loss"])
    first = int(targets[0]) if len(targets) else len(row["tokens"])
    rest = len(row["tokens"]) - first
    if length + 1 - rest < len(left_out) + 2:
        raise UserError(f"a row has {rest} tokens from its first target on, too many where data.length is {length}")
    prompt = shorten(row["tokens"][:first].tolist(), length + 1 - rest, marker=left_out)
    tokens = np.concatenate([np.asarray(prompt, np.int32), row["tokens"][first:]])
    return {"tokens": tokens, "loss": np.concatenate([np.zeros(len(prompt), np.float32), row["loss"][first:]])}


def fitting(
    stores: Stores, kind: str, length: int, left_out: Sequence[int] | None
) -> grain.MapDataset[dict[str, np.ndarray]]:
    """Return the rows of a kind, the long ones shortened; that each can be is tried here, before training begins.

    Raises `UserError` for an unknown kind, and for a row that cannot be shortened.
    """
    store = _store(stores, kind)
    rows, long = grain.MapDataset.source(store), _long(store, length)
    if not len(long):
        return rows
    if left_out is None:
        longest = int(np.max(np.diff(store.ends, prepend=0)))
        raise UserError(f"the longest row has {longest} tokens, but data.length is {length}")
    for row in long:
        fit(store[row], length, left_out)
    return rows.map(lambda row: fit(row, length, left_out))


def _long(store: RowStore, length: int) -> np.ndarray:
    """Return the numbers of the rows that have more than `length` + 1 tokens."""
    return np.flatnonzero(np.diff(store.ends, prepend=0) > length + 1)


def _store(stores: Stores, kind: str) -> RowStore:
    if kind not in stores:
        raise UserError(f"the data mix names {kind!r}, which the rows do not have{nearest(kind, stores)}")
    return stores[kind]


def _shift(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"tokens": row["tokens"][:-1], "targets": row["tokens"][1:], "weights": row["loss"][1:]}


def _names(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    kept: Iterable[str] = ("tokens", "targets", "weights")
    return {name: row[name] for name in kept} | {
        "segments": row["tokens_segment_ids"],
        "positions": row["tokens_positions"],
    }
