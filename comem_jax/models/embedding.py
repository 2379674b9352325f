"""The embedding look-up, with a gradient that is fast on every device."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# XLA's scatter-add on CPU takes about a millisecond a row; up to this vocabulary a one-hot product is far faster there
# and no slower elsewhere.
ONE_HOT_VOCAB = 8192


@jax.custom_vjp
def embed(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Return the rows of `table` `[vocab, hidden]` at integer `tokens` `[...]`, as `[..., hidden]`."""
    return jnp.take(table, tokens, axis=0)


def _forward(table: jax.Array, tokens: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return embed(table, tokens), (table, tokens)


def _backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    table, tokens = saved
    tokens, gradient = tokens.reshape(-1), gradient.reshape(-1, table.shape[1])
    if table.shape[0] > ONE_HOT_VOCAB:
        return jnp.zeros_like(table).at[tokens].add(gradient), None
    one_hot = jax.nn.one_hot(tokens, table.shape[0], dtype=gradient.dtype)
    return jnp.einsum("nv,nd->vd", one_hot, gradient, preferred_element_type=jnp.float32).astype(table.dtype), None


embed.defvjp(_forward, _backward)
