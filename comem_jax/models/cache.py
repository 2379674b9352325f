"""The key-value cache of cached decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

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


def write(cache: Cache, keys: jax.Array, values: jax.Array, starts: jax.Array) -> Cache:
    """Return the cache with new `keys` and `values` `[layers, batch, T, kv_heads, head_dim]` at `starts` `[batch]`.

    One slice update a row, over all layers at once: under donation XLA does it in place, and unlike a scatter it is
    fast on CPU.
    """
    for row in range(starts.shape[0]):
        at = (0, row, starts[row], 0, 0)
        cache = Cache(
            jax.lax.dynamic_update_slice(cache.keys, keys[:, row : row + 1], at),
            jax.lax.dynamic_update_slice(cache.values, values[:, row : row + 1], at),
        )
    return cache
