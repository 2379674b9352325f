"""Running Qwen3 over a store of pages: a chunk of one prompt, or one decoding step of many rows.

The store is only read while tokens run; their own keys and values are written to it afterwards, by `put`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from comem_jax.models.config import Qwen3Config
from comem_jax.models.kernels import page_reader
from comem_jax.models.pages import Pages, Reads, finish, packed, read, read_pages
from comem_jax.models.products import Weights
from comem_jax.models.qwen3 import Qwen3, block, rms_norm, rotary


def run_chunk(model: Qwen3, pages: Pages, tokens: jax.Array, start: jax.Array, reads: Reads) -> tuple[jax.Array, Pages]:
    """Run `tokens` `[T]` of one prompt behind its first `start` tokens, which lie in the pages of `reads`.

    Returns hidden states `[T, hidden]` after the final norm, and the tokens' keys and values as
    one page of T places, `[layers, 1, kv_heads, T, head_dim]`.
    """
    config, length = model.config, tokens.shape[0]
    reader = page_reader(model.attention)
    rotation = _rotary(start + jnp.arange(length)[None], config)
    causal = jnp.tril(jnp.ones((1, length, length), bool))

    def layer(x: jax.Array, scanned: tuple[Weights, jax.Array]) -> tuple[jax.Array, Pages]:
        weights, number = scanned
        kept: list[Pages] = []

        def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            kept.append(packed(_by_head(k), _by_head(v), pages.keys.dtype))
            grouped = _grouped(q[0], k.shape[2])
            own = read(grouped[None], *kept[0].wide(q.dtype), causal)
            return _heads(finish(read_pages(grouped, pages, number, reads, own, reader=reader)), q)

        return block(x, weights, config, rotation, attention), kept[0]

    scanned = model.stacked(), jnp.arange(config.num_hidden_layers)
    x = model.embed(tokens[None])
    x, new = jax.lax.scan(layer, x, scanned, unroll=model.unroll())
    return rms_norm(x[0], model.norm[...], config.rms_norm_eps), new


class Step(NamedTuple):
    """The next token of each row: `tokens` `[B]`, their `positions` `[B]`, and how many recent ones each row has."""

    tokens: jax.Array
    positions: jax.Array
    recent: jax.Array


def run_step(model: Qwen3, pages: Pages, recent: Pages, new: Step, reads: Sequence[Reads]) -> tuple[jax.Array, Pages]:
    """Run one token a row behind what `reads` has of its pages, and behind its recent tokens.

    `recent`, a page of `steps` places a row, holds what was run since the pages were written, as much for every row.
    Returns hidden states `[B, hidden]` after the final norm, and `recent` with the new tokens' keys and values.
    """
    config, reader = model.config, page_reader(model.attention)
    rotation = _rotary(new.positions[:, None], config)
    mask = (jnp.arange(recent.size) <= new.recent)[None, None]

    def layer(carry: tuple[jax.Array, Pages], scanned: tuple[Weights, jax.Array]) -> Any:
        (x, recent), (weights, number) = carry, scanned
        written: list[Pages] = []

        def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            new_pages = packed(_by_head(k), _by_head(v), pages.keys.dtype)
            place = (number, 0, 0, new.recent, 0)
            written.append(jax.tree.map(lambda all_steps, x: _write(all_steps, x, place), recent, new_pages))
            near = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), written[0])
            grouped = _grouped(q[:, 0], k.shape[2])
            keys, values = near.wide(q.dtype)
            partial = read(grouped[:, None], keys, values, mask)
            for some in reads:
                partial = read_pages(grouped, pages, number, some, partial, reader=reader)
            return _heads(finish(partial), q)

        return (block(x, weights, config, rotation, attention), written[0]), None

    scanned = model.stacked(), jnp.arange(config.num_hidden_layers)
    x = model.embed(new.tokens[:, None])
    (x, recent), _ = jax.lax.scan(layer, (x, recent), scanned, unroll=model.unroll())
    return rms_norm(x[:, 0], model.norm[...], config.rms_norm_eps), recent


def put(pages: Pages, new: Pages, page: jax.Array, offset: jax.Array, count: jax.Array) -> Pages:
    """Write the first `count` of stretches `new` `[layers, N, kv_heads, U, head_dim]` to a `page` from `offset` on.

    A loop of slices, which XLA writes in place, and not a scatter, which is slow on CPU.
    """

    def write(number: jax.Array, pages: Pages) -> Pages:
        def one(store: jax.Array, new: jax.Array) -> jax.Array:
            part = jax.lax.dynamic_slice_in_dim(new, number, 1, axis=1)
            return jax.lax.dynamic_update_slice(
                store, part.astype(store.dtype), (0, page[number], 0, offset[number], 0)
            )

        return jax.tree.map(one, pages, new)

    return jax.lax.fori_loop(0, count, write, pages)


def _rotary(positions: jax.Array, config: Qwen3Config) -> tuple[jax.Array, jax.Array]:
    """Return `rotary` behind a branch, out of which XLA fuses nothing.

    Else its CPU compiler computes cosine and sine anew for every head of every layer, a quarter of a chunk's time.
    """
    found = functools.partial(rotary, positions, config)
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(found))
    return jax.lax.cond(positions[0, 0] >= 0, found, lambda: nothing)


def _by_head(x: jax.Array) -> jax.Array:
    """Turn `[n, tokens, kv_heads, d]` into `[n, kv_heads, tokens, d]`."""
    return jnp.swapaxes(x, 1, 2)


def _grouped(q: jax.Array, kv_heads: int) -> jax.Array:
    """Return queries `[n, heads, d]`, scaled, by kv head: `[n, k, g, d]`."""
    return (q * q.shape[-1] ** -0.5).reshape(q.shape[0], kv_heads, -1, q.shape[-1])


def _heads(found: jax.Array, q: jax.Array) -> jax.Array:
    return found.astype(q.dtype).reshape(q.shape)


def _write(all_steps: jax.Array, new: jax.Array, place: tuple[Any, ...]) -> jax.Array:
    return jax.lax.dynamic_update_slice(all_steps, new[None].astype(all_steps.dtype), place)
