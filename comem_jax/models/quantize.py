"""Weights as int8 for serving: symmetric, one scale for every output channel, activations as they are."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from comem_jax.models.products import SCALE
from comem_jax.models.weights import Weight

LARGEST = 127  # not -128: the range is the same on both sides of zero


def quantize_weight(name: str, weight: Weight, array: jax.Array) -> dict[str, jax.Array]:
    """Return the arrays that the weight `name` is kept as: its int8 numbers and its scales, or what it was.

    Norms and the router stay: they are small, and an error in the router would send tokens to other experts.
    """
    if weight.is_norm or name == "layers.router":
        return {name: array}
    contracted = tuple(range(weight.stacked, weight.stacked + weight.inputs))
    numbers, scale = to_int8(array, contracted or (1,))  # of a table, a row is one token's
    return {name: numbers, name + SCALE: scale}


@partial(jax.jit, static_argnames="axes")
def to_int8(array: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Return the int8 numbers of `array` and their float32 scales, which are without the contracted `axes`.

    Number times scale differs from the weight by half a scale at most; a channel's largest weight is 127 scales.
    """
    wide = array.astype(jnp.float32)
    scale = jnp.abs(wide).max(axis=axes, keepdims=True) / LARGEST
    numbers = jnp.round(wide / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
    return numbers, scale.squeeze(axes)
