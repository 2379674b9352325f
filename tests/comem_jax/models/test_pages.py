"""Attention over pages against attention over the same keys in a row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comem_jax.models.pages import Pages, Reads, finish, read, read_pages

LAYERS, COUNT, SIZE, KV, GROUP, DIM = 2, 9, 4, 2, 3, 8
LAYER = 1


def normal(*shape: int, seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


PAGES = Pages(normal(LAYERS, COUNT, KV, SIZE, DIM, seed=0), normal(LAYERS, COUNT, KV, SIZE, DIM, seed=1))


def plain(q: jax.Array, seen: list[tuple[int, int]], new: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """The attention `[k, g, d]` of one query over places `(page, place)` and over new keys and values `[k, d]`."""
    keys, values = (
        jnp.stack([x[LAYER, page, :, place] for page, place in seen] + [pair[part] for pair in new])
        for part, x in enumerate((PAGES.keys, PAGES.values))
    )
    weights = jax.nn.softmax(jnp.einsum("kgd,skd->kgs", q, keys), axis=-1)
    return jnp.einsum("kgs,skd->kgd", weights, values)


def places(pages: list[int], tokens: int) -> list[tuple[int, int]]:
    return [(pages[at // SIZE], at % SIZE) for at in range(tokens)]


@pytest.mark.parametrize("compiled", [False, True])
def test_rows_read_their_own_and_what_they_share(compiled: bool) -> None:
    queries = 3
    q, keys, values = (normal(queries, KV, n, DIM, seed=s) for n, s in ((GROUP, 2), (1, 3), (1, 4)))
    # Row 0 has 6 tokens of its own in two chunks, row 1 has none, row 2 has one page; rows 0 and 2 share page 7.
    alone = Reads(
        jnp.array([[[1], [2]], [[5], [0]], [[8], [8]]]),
        jnp.array([[SIZE, 2], [SIZE, 0], [SIZE, SIZE]]),
        np.int32(2),
        jnp.array([[[0], [0]], [[2], [-1]], [[1], [1]]]),
    )
    together = Reads(jnp.array([[[7]]]), jnp.array([[SIZE]]), np.int32(1), jnp.array([[[0, 2, -1, -1]]]))

    def attend(q: jax.Array) -> jax.Array:
        partial = read(q[:, None], keys, values, np.ones((1, 1, 1), bool))
        for reads in (alone, together):
            partial = read_pages(q, PAGES, LAYER, reads, partial)
        return finish(partial)

    found = (jax.jit(attend) if compiled else attend)(q)
    seen = [places([7, 1, 2], SIZE + 6), [], places([7, 5], 2 * SIZE)]
    for row in range(queries):
        expected = plain(q[row], seen[row], [(keys[row, :, 0], values[row, :, 0])])
        np.testing.assert_allclose(found[row], expected, atol=1e-6)


@pytest.mark.parametrize("tokens", [0, 1, 4, 7, 16, 30])
def test_a_prompts_tokens_read_all_before_them_and_each_other(tokens: int) -> None:
    length = 5
    q, keys, values = (normal(1, length, KV, n, DIM, seed=s) for n, s in ((GROUP, 5), (1, 6), (1, 7)))
    pages = [3, 1, 4, 0, 5, 8, 2, 6]
    reads = Reads(
        jnp.array(pages).reshape(4, 1, 2),
        jnp.clip(tokens - 2 * SIZE * np.arange(4)[:, None], 0, 2 * SIZE),
        np.int32(-(-tokens // (2 * SIZE))),
    )
    own = (jnp.swapaxes(x[:, :, :, 0], 1, 2) for x in (keys, values))
    partial = read(q, *own, np.tril(np.ones((1, length, length), bool)))
    found = finish(read_pages(q[0], PAGES, LAYER, reads, partial))
    for at in range(length):
        before = [(keys[0, i, :, 0], values[0, i, :, 0]) for i in range(at + 1)]
        expected = plain(q[0, at], places(pages, tokens), before)
        np.testing.assert_allclose(found[at], expected, atol=1e-6)
