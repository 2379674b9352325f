"""Decoding many branches of one trunk: a trunk's keys and values lie in memory once, for all its branches."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from comem_jax.models.attention import MASKED
from comem_jax.models.cache import Cache
from comem_jax.models.products import Weights
from comem_jax.models.qwen3 import Qwen3, block, rms_norm, rotary
from comem_jax.models.spans import attend_spans


class New(NamedTuple):
    """New tokens of branches: `tokens` and their `positions` [batch, branches, new], and what each sees.

    A token sees the first `at` [batch, branches] tokens of its row's trunk, and of its branch's own places those that
    `own` [batch, branches, new, places] marks; the new tokens stand at `column` and after it, the same for all.
    """

    tokens: jax.Array
    positions: jax.Array
    at: jax.Array
    own: jax.Array
    column: jax.Array | int


def prefill(model: Qwen3, tokens: jax.Array) -> Cache:
    """Return the keys and values of trunks `tokens` [batch, length], each token seeing those before it and itself."""
    config = model.config
    batch, length = tokens.shape
    rotation = rotary(jnp.arange(length)[None], config)
    causal = jnp.stack([jnp.zeros(length, jnp.int32), jnp.arange(1, length + 1)], axis=-1)
    spans = jnp.broadcast_to(causal[None, :, None], (batch, length, 1, 2))

    def layer(x: jax.Array, weights: Weights) -> tuple[jax.Array, Cache]:
        kept: list[Cache] = []

        def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            kept.append(Cache(k, v))
            return attend_spans(q, k, v, spans)

        return block(x, weights, config, rotation, attention), kept[0]

    x = model.embed(tokens)
    return jax.lax.scan(layer, x, model.stacked(), unroll=model.unroll())[1]


def extend_branches(model: Qwen3, trunk: Cache, branches: Cache, new: New) -> tuple[jax.Array, Cache]:
    """Run new tokens behind branches; `trunk` holds `batch` rows, `branches` one for each of `batch x branches`.

    Returns hidden states [batch, branches, new, hidden] after the final norm, and the branches with the new tokens.
    """
    config = model.config
    batch, count, length = new.tokens.shape
    rotation = rotary(new.positions.reshape(batch, count * length), config)
    of_trunk = jnp.arange(trunk.length) < jnp.repeat(new.at, length, axis=1)[..., None]
    masks = of_trunk.reshape(batch, count, length, -1), new.own

    def layer(carry: tuple[jax.Array, Cache], scanned: tuple[Weights, jax.Array, jax.Array, jax.Array]) -> Any:
        (x, cache), (weights, number, *far) = carry, scanned
        written: list[Cache] = []

        def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            written.append(Cache(*(_write(c, n, number, new.column) for c, n in ((cache.keys, k), (cache.values, v)))))
            near = (
                jax.lax.dynamic_index_in_dim(c, number, keepdims=False) for c in (written[0].keys, written[0].values)
            )
            return _attend(q, far, list(near), masks)

        return (block(x, weights, config, rotation, attention), written[0]), None

    x = model.embed(new.tokens.reshape(batch, count * length))
    scanned = model.stacked(), jnp.arange(config.num_hidden_layers), trunk.keys, trunk.values
    (x, branches), _ = jax.lax.scan(layer, (x, branches), scanned, unroll=model.unroll())
    return rms_norm(x, model.norm[...], config.rms_norm_eps).reshape(batch, count, length, -1), branches


def _write(cached: jax.Array, new: jax.Array, layer: jax.Array, column: jax.Array | int) -> jax.Array:
    """Write `new` [batch, branches x new, kv_heads, head_dim] into one layer of `cached`, at one column."""
    update = new.reshape(1, cached.shape[1], -1, *cached.shape[3:]).astype(cached.dtype)
    return jax.lax.dynamic_update_slice(cached, update, (layer, 0, column, 0, 0))


def _attend(q: jax.Array, far: list[jax.Array], near: list[jax.Array], masks: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return attention of `q` [batch, branches x new, heads, head_dim] over the trunk and each branch's own places.

    `far` are the trunk's keys and values [batch, trunk, kv_heads, head_dim], `near` the branches' own
    [batch x branches, places, kv_heads, head_dim]; one softmax over both. Einsum letters: b batch, r branches, n new, s
    trunk, m places, k kv heads, g query heads a kv head, d head dimension.
    """
    batch, count, length, _ = masks[0].shape
    kv_heads, head_dim = near[0].shape[-2:]
    grouped = q.reshape(batch, count, length, kv_heads, -1, head_dim) * head_dim**-0.5
    far = [x.astype(q.dtype) for x in far]
    near = [x.reshape(batch, count, *x.shape[1:]).astype(q.dtype) for x in near]
    scores = [
        jnp.einsum("brnkgd,bskd->bkgrns", grouped, far[0], preferred_element_type=jnp.float32),
        jnp.einsum("brnkgd,brmkd->bkgrnm", grouped, near[0], preferred_element_type=jnp.float32),
    ]
    scores = [jnp.where(mask[:, None, None], s, MASKED) for s, mask in zip(scores, masks, strict=True)]
    highest = jnp.maximum(*(s.max(axis=-1, keepdims=True) for s in scores))
    powers = [jnp.exp(s - highest).astype(q.dtype) for s in scores]
    total = powers[0].sum(axis=-1, dtype=jnp.float32) + powers[1].sum(axis=-1, dtype=jnp.float32)
    summed = jnp.einsum("bkgrns,bskd->brnkgd", powers[0], far[1], preferred_element_type=jnp.float32)
    summed += jnp.einsum("bkgrnm,brmkd->brnkgd", powers[1], near[1], preferred_element_type=jnp.float32)
    return (summed / total.transpose(0, 3, 4, 1, 2)[..., None]).astype(q.dtype).reshape(q.shape)
