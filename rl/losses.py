"""Losses over logits: small pure functions."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def log_probabilities(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the log-probability `[batch, length]` of `targets` `[batch, length]` under `logits` `[..., vocab]`.

    The target's logit is picked by a one-hot product: the gradient of a gather is a scatter, which is very slow on CPU.
    """
    chosen = jnp.sum(jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype) * logits, axis=-1)
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the mean negative log-probability of the targets, weighted by `weights` `[batch, length]`, with metrics.

    `accuracy` is the weighted share of targets that are the most probable token. Nothing to learn gives a loss of 0.
    """
    total = jnp.maximum(jnp.sum(weights), 1e-6)
    loss = -jnp.sum(weights * log_probabilities(logits, targets)) / total
    accuracy = jnp.sum(weights * (jnp.argmax(logits, axis=-1) == targets)) / total
    return loss, {"loss": loss, "accuracy": accuracy}
