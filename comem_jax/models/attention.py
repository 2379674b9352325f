"""Attention, behind one function."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Return scaled dot-product attention with grouped query heads; the softmax is in float32.

    `q` is `[batch, queries, heads, head_dim]`, `k` and `v` are `[batch, keys, kv_heads, head_dim]`, where `heads` is
    a multiple of `kv_heads` and query head `h` reads kv head `h // (heads // kv_heads)`. `mask` is boolean
    `[batch or 1, queries, keys]`, true where a query may look; a query that may look nowhere gets the mean of `v`.
    The result has the shape and dtype of `q`.
    """
    batch, queries, heads, head_dim = q.shape
    grouped = q.reshape(batch, queries, k.shape[2], heads // k.shape[2], head_dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * head_dim**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(q.shape)


def causal_mask(length: int, segment_ids: jax.Array | None) -> jax.Array:
    """Return a boolean `[batch or 1, length, length]` mask: earlier tokens and itself, of the same segment only.

    `segment_ids` is `[batch, length]`, 0 for padding; padding sees padding, so that no row of the softmax is empty.
    """
    causal = jnp.tril(jnp.ones((1, length, length), bool))
    if segment_ids is None:
        return causal
    return causal & (segment_ids[:, :, None] == segment_ids[:, None, :])
