"""What a layer keeps for the backward pass (activation checkpointing), by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from comem_jax.errors import UserError, nearest
from comem_jax.models.sharding import is_split
from comem_jax.models.spans import SAVED

Remat = Literal["none", "mlp", "layer", "attention", "dots", "offload"]
INPUT = "layer_input"

_ATTENTION = jax.checkpoint_policies.save_only_these_names(SAVED)
_PRODUCTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

POLICIES: dict[str, Callable[..., Any] | None] = {
    # Keep everything: the fastest, while it fits.
    "none": None,
    # Keep everything but what is inside the MLP, which is run on a few tokens at a time (`in_parts`).
    "mlp": None,
    # Keep each layer's input alone, and compute the layer again.
    "layer": jax.checkpoint_policies.nothing_saveable,
    # Keep what attention over spans needs as well, so that its quadratic part is not computed again.
    "attention": _ATTENTION,
    # Keep the products with weights too, and compute again only what is elementwise.
    "dots": jax.checkpoint_policies.save_from_both_policies(_ATTENTION, _PRODUCTS),
    # Keep each layer's input in the host's memory, for sequences whose layer inputs alone fill the device.
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


MLP_TOKENS = 1024  # of a row, at a time


def check_remat(name: Remat) -> Remat:
    """Return the policy's name; raises `UserError` where there is none of that name."""
    if name not in POLICIES:
        raise UserError(f"no activation checkpointing policy {name!r}{nearest(name, POLICIES)}")
    return name


def rematerialise(layer: Callable[..., Any], name: Remat) -> Callable[..., Any]:
    """Return `layer(x, weights)` under the policy `name`."""
    if POLICIES[name] is None:
        return layer

    def named(x: jax.Array, weights: Any) -> Any:
        return layer(checkpoint_name(x, INPUT), weights)

    return jax.checkpoint(named, policy=POLICIES[name])


def in_parts(apply: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Apply a function of single tokens to a few of `x` `[batch, length, hidden]` at a time, and again backwards.

    Of a long sequence nothing of the size tokens x intermediate exists then, which on CPU also saves the time that such
    arrays take beyond the caches. A length that lies on several devices is parted already, and taken as a whole.
    """
    apply = jax.checkpoint(apply)
    batch, length, width = x.shape
    if length <= MLP_TOKENS or is_split("length"):
        return apply(x)
    padded = jnp.pad(x, [(0, 0), (0, -length % MLP_TOKENS), (0, 0)])
    parts = jnp.moveaxis(padded.reshape(batch, -1, MLP_TOKENS, width), 1, 0)
    return jnp.moveaxis(jax.lax.map(apply, parts), 0, 1).reshape(batch, -1, width)[:, :length]
