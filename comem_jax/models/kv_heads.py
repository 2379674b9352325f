"""A model with more kv heads than its folder has: each is there several times, and every device of a mesh has one.

A query head reads a copy of the kv head that it read before, so the model is the same function of its tokens.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from comem_jax.models.config import Qwen3Config
from comem_jax.models.sharding import mesh_axes
from comem_jax.models.weights import Weight

AXIS = "kv_heads"


def spread_kv_heads(config: Qwen3Config, mesh: Mesh | None) -> Qwen3Config:
    """Return `config` with a kv head for every part of `mesh`, where those there are and the query heads allow it."""
    parts = 1 if mesh is None else prod(mesh.shape[axis] for axis in mesh_axes(mesh, AXIS))
    heads = config.num_key_value_heads
    fits = parts > heads and parts % heads == 0 and config.num_attention_heads % parts == 0
    return replace(config, num_key_value_heads=parts) if fits else config


def unparted(weight: Weight) -> Weight:
    """Return `weight` with its kv heads whole on every device."""
    return replace(weight, axes=tuple("whole" if axis == AXIS else axis for axis in weight.axes))


def repeat_kv_heads(array: jax.Array, weight: Weight, count: int, place: NamedSharding | None) -> jax.Array:
    """Return the `array` of `weight` with `count` kv heads, each as often as the others, lying as `place` says."""
    axis = weight.axes.index(AXIS)
    repeated = partial(jnp.repeat, repeats=count // array.shape[axis], axis=axis)
    wide: jax.Array = jax.jit(repeated, out_shardings=place)(array)
    return wide
