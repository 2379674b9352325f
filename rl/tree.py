"""One trajectory with all its cuts and responses as one flat sequence: the shared trunk.

A group's responses share one prompt, and the prompts of one trajectory's rows are nested prefixes of the same history,
the *trunk*. Each *cut* of it is followed by a *closing* (the instruction to summarise) and branches into responses:

    [ trunk | closing slots | response slots ]

A trunk token sees the trunk up to itself. A closing token sees the trunk before its cut, and its closing up to itself.
A response token sees the trunk before its cut, its closing, and its own response up to itself. Positions go on as in a
sequence of its own. So every log-probability and every gradient is that of separate sequences, while a prompt is
computed once. (Prefix Grouper, arXiv 2506.05433, shares the prompt of one group; here all cuts share one trunk.)

The last token of each prompt stands at the start of each of its responses' slots, not before: a slot holds
`[last prompt token, *response[:-1]]`, its targets are the response, and what is predicted is one static slice at the
sequence's end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from comem_jax.errors import UserError
from comem_jax.models import Qwen3
from rl.losses import log_probabilities

SPANS = 3
CHUNK = 1024  # tokens whose logits exist at once
TRUNK_MULTIPLE, SLOT_MULTIPLE = 256, 16


@dataclass(frozen=True)
class Cut:
    """Where responses branch off: after the first `at` trunk tokens and the tokens of `closing`."""

    at: int
    closing: Sequence[int]
    responses: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Tree:
    """One trajectory: its whole history's tokens, and the cuts of it."""

    trunk: Sequence[int]
    cuts: Sequence[Cut]


class Layout(NamedTuple):
    """The static sizes of a batch: `trunk` tokens, `closings` slots of `closing` tokens, `responses` of `response`."""

    trunk: int
    closings: int
    closing: int
    responses: int
    response: int

    @classmethod
    def fit(cls, trees: Sequence[Tree], *, multiple: int = TRUNK_MULTIPLE, slot_multiple: int = SLOT_MULTIPLE) -> Self:
        """Return the smallest layout that holds each of `trees`, rounded up so that few programs are compiled.

        The trunk's length is rounded to `multiple`, those of closings and responses to `slot_multiple` tokens.
        """
        cuts = [cut for tree in trees for cut in tree.cuts]
        return cls(
            _up(max((_trunk_used(tree) for tree in trees), default=0), multiple),
            max((len(tree.cuts) for tree in trees), default=0),
            _up(max((_closing_used(cut) for cut in cuts), default=0), slot_multiple),
            max((sum(len(cut.responses) for cut in tree.cuts) for tree in trees), default=0),
            _up(max(map(len, chain.from_iterable(cut.responses for cut in cuts)), default=0), slot_multiple),
        )

    @property
    def prompt(self) -> int:
        """How many tokens stand before the responses."""
        return self.trunk + self.closings * self.closing

    @property
    def length(self) -> int:
        """How many tokens a row has."""
        return self.prompt + self.responses * self.response


class TreeBatch(NamedTuple):
    """Trees laid out, a row each. B rows, N tokens a row, R responses of L tokens.

    `tokens` and `positions` `[B, N]`, `spans` `[B, N, 3, 2]` (see `attend_spans`), `targets` `[B, R, L]`, `mask`
    `[B, R, L]` (1 where a target is a response's token, else 0), `cut` `[B, R]` (the number of the response's cut in
    its tree, -1 for an empty slot).
    """

    tokens: Any
    positions: Any
    spans: Any
    targets: Any
    mask: Any
    cut: Any


def lay_out(trees: Sequence[Tree], layout: Layout) -> TreeBatch:
    """Return `trees` as a batch of numpy arrays; responses stand in the order of their cuts.

    Raises `UserError` for a cut beyond its trunk, a response without any token before it, or a tree larger than the
    layout.
    """
    rows, slots = len(trees), (len(trees), layout.responses, layout.response)
    batch = TreeBatch(
        np.zeros((rows, layout.length), np.int32),
        np.zeros((rows, layout.length), np.int32),
        np.zeros((rows, layout.length, SPANS, 2), np.int32),
        np.zeros(slots, np.int32),
        np.zeros(slots, np.float32),
        np.full(slots[:2], -1, np.int32),
    )
    for number, tree in enumerate(trees):
        _check(tree, number, layout)
        _fill(_Row(TreeBatch(*(array[number] for array in batch)), layout), tree)
    return batch


def response_logprobs(
    model: Qwen3, batch: TreeBatch, layout: Layout, *, temperature: float = 1.0, chunk: int = CHUNK
) -> tuple[jax.Array, jax.Array]:
    """Return the log-probability and the entropy (nats) of every response token, `[B, R, L]` each, 0 where masked.

    Both are float32, of the softmax of the logits over `temperature`. The language-model head runs on response slots
    alone, on about `chunk` tokens at once, and again in the backward pass: no larger array has the vocabulary's size.
    """
    hidden = model.hidden(batch.tokens, positions=batch.positions, spans=batch.spans)[:, layout.prompt :]
    rows, slots = batch.targets.shape[0], layout.responses * layout.response
    width = max(1, min(chunk // rows, slots))

    def chunks(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, -slots % width)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, -1, width, *x.shape[2:]), 1, 0)

    def score(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = model.head(part[0]) / temperature
        return log_probabilities(logits, part[1]), _entropy(logits)

    inputs = chunks(hidden), chunks(jnp.asarray(batch.targets).reshape(rows, slots))
    found = jax.lax.map(jax.checkpoint(score), inputs)
    flat = (jnp.moveaxis(x, 0, 1).reshape(rows, -1)[:, :slots].reshape(batch.targets.shape) for x in found)
    logprobs, entropy = (jnp.where(batch.mask > 0, x, 0.0) for x in flat)
    return logprobs, entropy


def _entropy(logits: jax.Array) -> jax.Array:
    normal = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.sum(jnp.exp(normal) * normal, axis=-1)


class _Row:
    """One row being filled; `arrays` are views into the batch."""

    def __init__(self, arrays: TreeBatch, layout: Layout) -> None:
        self.arrays = arrays
        self.layout = layout
        self.responses = 0

    def place(self, at: int, tokens: Sequence[int], position: int, seen: Sequence[tuple[int, int]]) -> None:
        """Put `tokens` at index `at`, each seeing the spans `seen` and its fellows up to itself."""
        own = slice(at, at + len(tokens))
        self.arrays.tokens[own] = tokens
        self.arrays.positions[own] = np.arange(position, position + len(tokens))
        self.arrays.spans[own, : len(seen)] = np.reshape(seen, (-1, 2))
        self.arrays.spans[own, -1, 0] = at
        self.arrays.spans[own, -1, 1] = np.arange(at, at + len(tokens)) + 1

    def respond(self, number: int, last: int, position: int, seen: Sequence[tuple[int, int]], response: Any) -> None:
        """Put one response of cut `number`, whose prompt's last token is `last` at `position`, into the next slot."""
        slot, size = self.responses, len(response)
        self.place(self.layout.prompt + slot * self.layout.response, [last, *response][:size], position, seen)
        self.arrays.targets[slot, :size] = response
        self.arrays.mask[slot, :size] = 1
        self.arrays.cut[slot] = number
        self.responses += 1


def _fill(row: _Row, tree: Tree) -> None:
    row.place(0, tree.trunk[: _trunk_used(tree)], 0, [])
    for number, cut in enumerate(tree.cuts):
        start = row.layout.trunk + number * row.layout.closing
        row.place(start, cut.closing[:-1], cut.at, [(0, cut.at)])
        # The last prompt token is the closing's or, where that is empty, the trunk's; it stands in the slots.
        trunk, closing = (cut.at, len(cut.closing) - 1) if cut.closing else (cut.at - 1, 0)
        last = cut.closing[-1] if cut.closing else tree.trunk[trunk]
        for response in cut.responses:
            row.respond(number, last, trunk + closing, [(0, trunk), (start, start + closing)], response)


def _trunk_used(tree: Tree) -> int:
    """How much of the trunk some cut sees."""
    return max((cut.at for cut in tree.cuts), default=0)


def _closing_used(cut: Cut) -> int:
    """How much of the closing stands before the responses' slots: all but the prompt's last token."""
    return max(0, len(cut.closing) - 1)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _check(tree: Tree, number: int, layout: Layout) -> None:
    for place, cut in enumerate(tree.cuts):
        where = f"cut {place} of tree {number}"
        if not 0 <= cut.at <= len(tree.trunk):
            raise UserError(f"{where} is at {cut.at}, but its trunk has {len(tree.trunk)} tokens")
        if not cut.at and not cut.closing:
            raise UserError(f"{where} has no prompt: it is at 0 and its closing is empty")
    for name, needed, room in _needs(tree, layout):
        if needed > room:
            raise UserError(f"tree {number} needs {needed} {name}, but the layout has {room}; use Layout.fit")


def _needs(tree: Tree, layout: Layout) -> Iterator[tuple[str, int, int]]:
    responses = [response for cut in tree.cuts for response in cut.responses]
    yield "trunk tokens", _trunk_used(tree), layout.trunk
    yield "closings", len(tree.cuts), layout.closings
    yield "closing tokens", max(map(_closing_used, tree.cuts), default=0), layout.closing
    yield "responses", len(responses), layout.responses
    yield "response tokens", max(map(len, responses), default=0), layout.response
