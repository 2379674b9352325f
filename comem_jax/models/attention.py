"""Attention, behind one function."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from comem_jax.models.sharding import is_split

MASKED = -1e30
# What computes attention on an NVIDIA GPU; elsewhere XLA does. "auto" is cuDNN for causal attention and XLA for pages,
# "pallas" cuDNN and the kernel of `kernels` for pages, "xla" neither.
CHOICES = ("auto", "xla", "pallas")
# Causal attention is computed in blocks of at least this many queries, and in at most this many blocks.
BLOCK, MAX_BLOCKS = 128, 8
CUDNN_DIM = 128  # the longest heads that it takes before Hopper


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *, causal: bool = False) -> jax.Array:
    """Return scaled dot-product attention with grouped query heads; the softmax is in float32.

    `q` is `[batch, queries, heads, head_dim]`, `k` and `v` are `[batch, keys, kv_heads, head_dim]`, where `heads` is
    a multiple of `kv_heads` and query head `h` reads kv head `h // (heads // kv_heads)`. `mask` is boolean
    `[batch or 1, queries, keys]`, true where a query may look; a query that may look nowhere gets the mean of `v`.
    `causal` promises that the mask lets no query look at a later key (there are as many keys as queries), so that
    blocks of keys that are masked anyway are never computed. The result has the shape and dtype of `q`.
    """
    length = q.shape[1]
    # Blocks of a length that lies on several devices would have to move between them.
    blocks = min(MAX_BLOCKS, length // BLOCK) if causal and not is_split("length") else 1
    if blocks <= 1:
        return _attend(q, k, v, mask)
    ends = [length * (i + 1) // blocks for i in range(blocks)]
    parts = [
        _attend(q[:, start:end], k[:, :end], v[:, :end], mask[:, start:end, :end])
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    return jnp.concatenate(parts, axis=1)


def attend_causal(
    q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array, segments: bool, choice: str = "auto"
) -> jax.Array:
    """Return what `attend` does with a `mask` of `causal_mask`, through cuDNN where `takes_cudnn` says so.

    `segments` says whether the mask parts segments: otherwise cuDNN needs none, which is faster. What it returns has
    never been compared with `attend` on a GPU here; JAX's own tests hold it to 0.01 of XLA's in bfloat16.
    """
    if takes_cudnn(q, segments=segments, choice=choice, cuda=on_cuda()):
        return attend_through_cudnn(q, k, v, mask if segments else None)
    return attend(q, k, v, mask, causal=True)


def takes_cudnn(q: jax.Array, *, segments: bool, choice: str, cuda: bool) -> bool:
    """Return whether cuDNN computes causal attention of these queries, on an NVIDIA GPU where `cuda` says so.

    It has no float32, and no length that lies on several devices; a masked one must be even for its gradient. The
    choice is made while a program is traced: one left to XLA's lowering keeps for the backward pass what both need.
    """
    length, head_dim = q.shape[1], q.shape[3]
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and head_dim <= CUDNN_DIM and head_dim % 8 == 0
    whole = not is_split("length") and not (segments and length % 2)
    return choice != "xla" and cuda and fits and whole


def attend_through_cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Return causal attention through cuDNN, also masked by `mask`; raises `RuntimeError` where there is no cuDNN."""
    heads = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=heads, is_causal=True, implementation="cudnn")


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    batch, queries, heads, head_dim = q.shape
    grouped = q.reshape(batch, queries, k.shape[2], heads // k.shape[2], head_dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, k, preferred_element_type=jnp.float32) * head_dim**-0.5
    scores += jnp.where(mask, 0.0, MASKED)[:, None, None]
    # Softmax with the division after the product: on CPU this halves the time of forward and backward, since nothing
    # of size queries x keys is divided, nor its gradient.
    powers = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = powers.sum(axis=-1, keepdims=True)
    summed = jnp.einsum("bkgts,bskd->bkgtd", powers.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (summed / total).astype(q.dtype).transpose(0, 3, 1, 2, 4).reshape(q.shape)


def on_cuda() -> bool:
    """Return whether JAX runs on an NVIDIA GPU."""
    return "cuda" in jax.local_devices()[0].client.platform_version


def causal_mask(length: int, segment_ids: jax.Array | None) -> jax.Array:
    """Return a boolean `[batch or 1, length, length]` mask: earlier tokens and itself, of the same segment only.

    `segment_ids` is `[batch, length]`, 0 for padding; padding sees padding, so that no row of the softmax is empty.
    """
    causal = jnp.tril(jnp.ones((1, length, length), bool))
    if segment_ids is None:
        return causal
    return causal & (segment_ids[:, :, None] == segment_ids[:, None, :])
