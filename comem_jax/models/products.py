"""Products of activations with weights by name, and the gated MLP made of them.

Einsum letters: e hidden, f the MLP's width; `...` is whatever stands before.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Weights = dict[str, jax.Array]
# What follows a weight's name in the name of its scales, where it is kept as int8 (see `quantize`).
SCALE = "_scale"


def product(equation: str, x: jax.Array, weights: Weights, name: str, dtype: Any = None) -> jax.Array:
    """Return the einsum of `x` with the weight `name` as `dtype`, by default that of `x`.

    An int8 weight is multiplied as the whole numbers it holds, which bfloat16 has exactly, and every output channel by
    its scale afterwards. What is read of the weight is its int8 numbers where the compiler widens them on the way into
    the product; XLA on CPU widens them in memory first, so that int8 saves room there and no time.
    """
    weight, scale = weights[name], weights.get(name + SCALE)
    if scale is None:
        return jnp.einsum(equation, x, weight, preferred_element_type=dtype)
    found = jnp.einsum(equation, x, weight.astype(x.dtype), preferred_element_type=jnp.float32)
    return (found * scale).astype(dtype or x.dtype)


def gated(x: jax.Array, weights: Weights) -> jax.Array:
    """Return the gated MLP (SwiGLU, arXiv 2002.05202) of `x` `[..., hidden]`: down(silu(gate x) * up x)."""
    gate = jax.nn.silu(product("...e,ef->...f", x, weights, "gate"))
    up = product("...e,ef->...f", x, weights, "up")
    return product("...f,fe->...e", gate * up, weights, "down")
