"""Attention over keys and values that lie in pages: its cost follows what is read, not what a row could hold.

What is read is a list of *reads*: a few pages, and the queries that read them. Reads are taken in chunks of one fixed
shape by a loop whose length is not part of the program, so that one program serves every context length and every mix
of them, and a page that many queries share is read once for all of them. Partial results are merged by their
log-sum-exp (Milakov and Gimelshein, 2018, arXiv 1805.02867), as the blocks of flash attention are.

Einsum letters: e reads, r the queries of a read, s places of its pages, k kv heads, g query heads a kv head, d head
dimension, q all queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from comem_jax.models.attention import MASKED
from comem_jax.models.config import Qwen3Config
from comem_jax.models.quantize import to_int8
from comem_jax.models.sharding import on_each_device

FEW = 8  # queries of one kv head


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pages:
    """Keys (rotated) and values of every layer, each `[layers, pages, kv_heads, size, head_dim]`.

    Where they are int8, every token has a scale a kv head, float32 `[layers, pages, kv_heads, size, 1]`.
    """

    keys: jax.Array
    values: jax.Array
    key_scales: jax.Array | None = None
    value_scales: jax.Array | None = None

    @property
    def size(self) -> int:
        """How many tokens a page holds."""
        return self.keys.shape[3]

    def wide(self, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """Return the keys and the values as `dtype`."""
        keys, values = self.keys.astype(dtype), self.values.astype(dtype)
        if self.key_scales is None or self.value_scales is None:
            return keys, values
        return keys * self.key_scales.astype(dtype), values * self.value_scales.astype(dtype)


class Reads(NamedTuple):
    """Chunks of E reads: `pages` `[chunks, E, C]` and how many of their places count, `valid` `[chunks, E]`.

    `readers` `[chunks, E, R]` are the numbers of the queries that read them, -1 for none; None where every query reads
    all (then E is 1). The first `count` chunks are taken.
    """

    pages: Any
    valid: Any
    count: Any
    readers: Any = None


class Partial(NamedTuple):
    """A softmax under way, float32: the highest score `[q, k, g]`, the sum of powers, and their product with values."""

    top: jax.Array
    total: jax.Array
    summed: jax.Array


Reader = Callable[[jax.Array, Pages, Any, Reads, Partial], Partial]


def init_pages(config: Qwen3Config, pages: int, size: int, dtype: Any = jnp.float32) -> Pages:
    """Return a store of empty pages."""
    shape = (config.num_hidden_layers, pages, config.num_key_value_heads, size, config.head_dim)
    scales = [jnp.zeros((*shape[:-1], 1))] * 2 if dtype == jnp.int8 else []
    return Pages(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), *map(jnp.copy, scales))


def packed(keys: jax.Array, values: jax.Array, dtype: Any) -> Pages:
    """Return keys and values `[..., head_dim]` as pages of `dtype` keep them, if they are int8; else as they are."""
    if dtype != jnp.int8:
        return Pages(keys, values)
    (keys, key_scales), (values, value_scales) = (to_int8(x, (x.ndim - 1,)) for x in (keys, values))
    return Pages(keys, values, key_scales[..., None], value_scales[..., None])


def read_pages(
    q: jax.Array, pages: Pages, layer: jax.Array | int, reads: Reads, before: Partial, *, reader: Reader | None = None
) -> Partial:
    """Let queries `q` `[q, k, g, d]`, scaled, read pages of one layer, on top of what they read `before`.

    On a mesh every device reads the pages of its own kv heads. `reader` takes the same arguments and does it, by
    default `read_by_chunks`.
    """
    heads, whole = ("whole", "kv_heads"), ()
    read_own = on_each_device(reader or read_by_chunks, (heads, ("layers", *heads), whole, whole, heads), heads)
    partial: Partial = read_own(q, pages, layer, reads, before)
    return partial


def read_by_chunks(q: jax.Array, pages: Pages, layer: jax.Array | int, reads: Reads, before: Partial) -> Partial:
    """Read pages as `read_pages` does, of one device: chunk by chunk, a chunk's pages gathered."""

    def chunk(number: jax.Array, partial: Partial) -> Partial:
        places, valid = reads.pages[number], reads.valid[number]
        found = jax.tree.map(lambda x: _gather(x, layer, places), pages)
        keys, values = found.wide(q.dtype)
        mask = (jnp.arange(keys.shape[2]) < valid[:, None])[:, None]
        if reads.readers is None:
            return merge(partial, read(q[None], keys, values, mask))
        readers = reads.readers[number]
        seen = read(q[readers], keys, values, mask & (readers >= 0)[..., None])
        return _merge_readers(partial, seen, readers)

    return jax.lax.fori_loop(0, reads.count, chunk, before)


def read(q: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> Partial:
    """Let queries `[e, r, k, g, d]`, scaled, read keys and values `[e, k, s, d]` where `mask` `[e, r or 1, s]` says so.

    Returns what they found, the first two axes as one.
    """
    rows = jnp.moveaxis(q, 1, 3)
    scores = _scores(rows.reshape(*rows.shape[:2], -1, q.shape[-1]), keys)
    scores = jnp.where(mask[:, None, None], scores.reshape(*rows.shape[:-1], -1), MASKED)
    top = jnp.maximum(scores.max(axis=-1), MASKED / 2)  # so that the powers of a query that sees nothing are 0
    powers = jnp.exp(scores - top[..., None])
    summed = _product(powers.astype(values.dtype), values)
    found = (jnp.moveaxis(x, 3, 1) for x in (top, powers.sum(axis=-1), summed))
    return Partial(*(x.reshape(-1, *x.shape[2:]) for x in found))


def _scores(q: jax.Array, keys: jax.Array) -> jax.Array:
    """Return the products `[e, k, q, s]` of queries `[e, k, q, d]` and keys `[e, k, s, d]`, in float32.

    The one of them that has more rows comes first, which is faster on CPU.
    """
    if q.shape[2] > FEW:
        return jnp.einsum("ekqd,eksd->ekqs", q, keys, preferred_element_type=jnp.float32)
    return jnp.swapaxes(jnp.einsum("eksd,ekqd->eksq", keys, q, preferred_element_type=jnp.float32), 2, 3)


def _product(powers: jax.Array, values: jax.Array) -> jax.Array:
    """Return the product `[e, k, g, r, d]` of powers `[e, k, g, r, s]` and values `[e, k, s, d]`, in float32.

    For few queries a sum of products takes a quarter of a matrix product's time on CPU.
    """
    if powers.shape[2] * powers.shape[3] > FEW:
        return jnp.einsum("ekgrs,eksd->ekgrd", powers, values, preferred_element_type=jnp.float32)
    return jnp.sum(powers[..., None] * values[:, :, None, None], axis=-2, dtype=jnp.float32)


def merge(one: Partial, other: Partial) -> Partial:
    """Return both partial results of the same queries as one."""
    top = jnp.maximum(one.top, other.top)
    return _sum(_scaled(one, jnp.exp(one.top - top)), _scaled(other, jnp.exp(other.top - top)), top)


def finish(partial: Partial) -> jax.Array:
    """Return the attention `[q, k, g, d]` (float32); zeros for a query that has read nothing."""
    return partial.summed / jnp.maximum(partial.total, 1e-30)[..., None]


def _merge_readers(partial: Partial, found: Partial, readers: jax.Array) -> Partial:
    """Merge what the `readers` `[e, r]` found into the partial results of all queries.

    A product with ones and zeros instead of a scatter, which is very slow on CPU.
    """
    reader = readers.reshape(-1)
    own = reader == jnp.arange(partial.top.shape[0])[:, None]
    highest = jnp.max(jnp.where(own[:, :, None, None], found.top, MASKED), axis=1)
    top = jnp.maximum(partial.top, highest)
    share = jnp.where((reader < 0)[:, None, None], 0, jnp.exp(found.top - top[reader]))
    added = jax.tree.map(lambda x: jnp.einsum("qe,e...->q...", own.astype(x.dtype), x), _scaled(found, share))
    return _sum(_scaled(partial, jnp.exp(partial.top - top)), added, top)


def _scaled(partial: Partial, share: jax.Array) -> Partial:
    return partial._replace(total=partial.total * share, summed=partial.summed * share[..., None])


def _sum(one: Partial, other: Partial, top: jax.Array) -> Partial:
    """Return two partial results that are scaled to the same highest score as one."""
    return Partial(top, one.total + other.total, one.summed + other.summed)


def _gather(x: jax.Array, layer: jax.Array | int, places: jax.Array) -> jax.Array:
    """Return the pages `[e, c]` of a layer, end to end: `[e, kv_heads, c * size, head_dim]`."""
    _, pages, heads, size, dim = x.shape
    each = ((layer * pages + places)[:, None] * heads + jnp.arange(heads)[:, None]).reshape(-1)
    found = x.reshape(-1, size * dim).at[each].get(mode="promise_in_bounds")  # rows of one array: a third faster
    return found.reshape(len(places), heads, -1, dim)
