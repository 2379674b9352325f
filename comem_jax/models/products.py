"""Products of activations with weights by name, and the gated MLP made of them.

Einsum letters: e hidden, f the MLP's width; `...` is whatever stands before.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Weights = dict[str, jax.Array]


def product(equation: str, x: jax.Array, weights: Weights, name: str) -> jax.Array:
    """Return the einsum of `x` with the weight `name`."""
    return jnp.einsum(equation, x, weights[name])


def gated(x: jax.Array, weights: Weights) -> jax.Array:
    """Return the gated MLP (SwiGLU, arXiv 2002.05202) of `x` `[..., hidden]`: down(silu(gate x) * up x)."""
    gate = jax.nn.silu(product("...e,ef->...f", x, weights, "gate"))
    up = product("...e,ef->...f", x, weights, "up")
    return product("...f,fe->...e", gate * up, weights, "down")
