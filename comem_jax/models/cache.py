"""The key-value cache of cached decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from comem_jax.models.attention import attend
from comem_jax.models.config import Qwen3Config


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys (rotated) and values of every layer, each `[layers, batch, length, kv_heads, head_dim]`."""

    keys: jax.Array
    values: jax.Array

    @property
    def length(self) -> int:
        """How many tokens a row can hold."""
        return self.keys.shape[2]


def init_cache(config: Qwen3Config, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """Return an empty cache of `batch` rows of `length` tokens."""
    shape = (config.num_hidden_layers, batch, length, config.num_key_value_heads, config.head_dim)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class CachedAttention:
    """Attention of new tokens over one layer of a cache, which it writes them to first; `cache` is then the new one."""

    def __init__(self, cache: Cache, layer: jax.Array, starts: jax.Array, mask: jax.Array) -> None:
        """Take the `layer`'s number, each row's first new place `[batch]`, and a mask `[batch, new, places read]`."""
        self.cache = cache
        self.layer = layer
        self.starts = starts
        self.mask = mask

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Write `k` and `v` `[batch, new, kv_heads, head_dim]`, and return attention of `q` over the places read."""
        keys = _write(self.cache.keys, k, self.layer, self.starts)
        values = _write(self.cache.values, v, self.layer, self.starts)
        self.cache = Cache(keys, values)
        reach = self.mask.shape[-1]
        k, v = (jax.lax.dynamic_index_in_dim(x[:, :, :reach], self.layer, 0, keepdims=False) for x in (keys, values))
        return attend(q, k.astype(q.dtype), v.astype(q.dtype), self.mask)


def _write(cached: jax.Array, new: jax.Array, layer: jax.Array, starts: jax.Array) -> jax.Array:
    """Write `new` `[batch, T, kv_heads, head_dim]` into one layer of the cache, row by row.

    XLA does these slice updates in place; one scatter (what `vmap` makes of them) took three times as long on CPU.
    """
    for row in range(starts.shape[0]):
        update = new[None, row : row + 1].astype(cached.dtype)
        cached = jax.lax.dynamic_update_slice(cached, update, (layer, row, starts[row], 0, 0))
    return cached
