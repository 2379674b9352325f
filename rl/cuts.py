"""Prompts as cuts of one trunk: what the rows of a trajectory share is encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from rl.rollout import Prompts

# Sizes are rounded up to multiples of these, so that few programs are compiled.
TRUNK_MULTIPLE, SLOT_MULTIPLE = 256, 32


class Cut(NamedTuple):
    """A prompt: the trunk's first `at` tokens, then `closing` (at least one token)."""

    at: int
    closing: list[int]


class Trunk(NamedTuple):
    """Tokens that several prompts begin with, and how each goes on."""

    tokens: list[int]
    cuts: list[Cut]


def cut_trunk(prompts: Sequence[Sequence[int]]) -> Trunk:
    """Return prompts of token ids as cuts of the longest of them; each shares with it all that is the same."""
    # A prompt's last token is never the trunk's: it is what the first token of the answer is read from.
    trunk = list(max(prompts, key=len)[:-1])
    ats = [shared(trunk, prompt[:-1]) for prompt in prompts]
    return Trunk(trunk, [Cut(at, list(prompt[at:])) for prompt, at in zip(prompts, ats, strict=True)])


def stack(trunks: Sequence[Trunk], cuts: int) -> Prompts:
    """Return trunks of at most `cuts` cuts as arrays; where there is no cut, one stands that nobody reads."""
    length = _rounded(max(len(trunk.tokens) for trunk in trunks), TRUNK_MULTIPLE)
    places = _rounded(max(len(cut.closing) for trunk in trunks for cut in trunk.cuts), SLOT_MULTIPLE)
    tokens = np.zeros((len(trunks), length), np.int32)
    closing = np.zeros((len(trunks), cuts, places), np.int32)
    at, lengths = np.zeros((len(trunks), cuts), np.int32), np.ones((len(trunks), cuts), np.int32)
    for b, trunk in enumerate(trunks):
        tokens[b, : len(trunk.tokens)] = trunk.tokens
        for c, cut in enumerate(trunk.cuts):
            closing[b, c, : len(cut.closing)] = cut.closing
            at[b, c], lengths[b, c] = cut.at, len(cut.closing)
    return Prompts(*map(jnp.asarray, (tokens, closing, at, lengths)))


def shared(first: ArrayLike, second: ArrayLike) -> int:
    """Return how many tokens two sequences begin with that are the same."""
    one, other = np.asarray(first), np.asarray(second)
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if different.size else size


def _rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
