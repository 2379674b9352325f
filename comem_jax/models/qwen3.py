"""Qwen3 in Flax NNX: one definition for training and for serving.

Layer weights are stacked over layers and applied with `jax.lax.scan`. Einsum letters: b batch, t tokens, e hidden,
h query heads, k kv heads, d head dimension, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from comem_jax.models.attention import attend_causal, causal_mask
from comem_jax.models.cache import Cache, CachedAttention
from comem_jax.models.config import Qwen3Config
from comem_jax.models.embedding import embed
from comem_jax.models.experts import mix
from comem_jax.models.products import SCALE, Weights, gated, product
from comem_jax.models.remat import Remat, check_remat, in_parts, rematerialise
from comem_jax.models.rope import frequencies
from comem_jax.models.sharding import constrain
from comem_jax.models.spans import attend_spans
from comem_jax.models.weights import Weight, weight_table

Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

INIT_STDDEV = 0.02
# Few layers run faster unrolled (XLA sees static slices of the stacked weights); many would only compile longer.
UNROLLED_LAYERS = 4


class Qwen3(nnx.Module):
    """A Qwen3 language model, dense or with experts.

    `remat` names what it keeps for the backward pass, `attention` what computes it on a GPU (`attention.CHOICES`).
    """

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs, dtype: Any = jnp.float32, remat: Remat = "none") -> None:
        """Make a random model: normal weights of standard deviation 0.02, norms of one, all of `dtype`."""
        self.config = config
        self.remat = check_remat(remat)
        self.attention = "auto"
        params = {name: random_weight(weight, rngs, dtype) for name, weight in weight_table(config).items()}
        self.embedding = params["embedding"]
        self.layers = nnx.Dict({k.removeprefix("layers."): p for k, p in params.items() if k.startswith("layers.")})
        self.norm = params["norm"]
        self.lm_head = params.get("lm_head")
        # The tables' scales, where `quantize` has made them int8.
        self.embedding_scale: nnx.Param[jax.Array] | None = None
        self.lm_head_scale: nnx.Param[jax.Array] | None = None

    def __call__(
        self, tokens: jax.Array, *, positions: jax.Array | None = None, segment_ids: jax.Array | None = None
    ) -> jax.Array:
        """Return next-token logits `[batch, length, vocab]` in float32; see `hidden` for the arguments."""
        return self.head(self.hidden(tokens, positions=positions, segment_ids=segment_ids))

    def hidden(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        spans: jax.Array | None = None,
    ) -> jax.Array:
        """Return the hidden states `[batch, length, hidden]` after the final norm.

        `tokens` is integer `[batch, length]`; `positions` `[batch, length]` defaults to 0, 1, ...; `segment_ids`
        `[batch, length]` is 0 for padding, and a token sees earlier tokens of its own segment only. With `spans`
        `[batch, length, K, 2]` a token sees just the tokens of its spans (see `attend_spans`), whatever its segment.
        """
        positions = jnp.arange(tokens.shape[1])[None] if positions is None else positions
        rotation = rotary(positions, self.config)
        attention = _attention(self.attention, tokens.shape[1], segment_ids, spans)

        def layer(x: jax.Array, weights: Weights) -> tuple[jax.Array, None]:
            x = block(x, weights, self.config, rotation, attention, parts=self.remat == "mlp")
            return constrain(x, "batch", "length", "hidden"), None

        x = constrain(self.embed(tokens), "batch", "length", "hidden")
        x, _ = jax.lax.scan(rematerialise(layer, self.remat), x, self.stacked(), unroll=self.unroll())
        return rms_norm(x, self.norm[...], self.config.rms_norm_eps)

    def head(self, hidden: jax.Array) -> jax.Array:
        """Return float32 logits `[..., vocab]` of hidden states `[..., hidden]`."""
        name = "embedding" if self.lm_head is None else "lm_head"
        tables = {key: param[...] for key in (name, name + SCALE) if (param := getattr(self, key)) is not None}
        return product("...e,ve->...v", hidden, tables, name, jnp.float32)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Return the embeddings `[..., hidden]` of integer `tokens` `[...]`."""
        # Gather the table's rows whole before the look-up, or its result lies across the batch's own axes.
        rows = embed(constrain(self.embedding[...], "vocab", "hidden"), tokens)
        if self.embedding_scale is None:
            return rows
        return (rows * self.embedding_scale[...][tokens][..., None]).astype(self.norm[...].dtype)

    def extend(
        self, tokens: jax.Array, cache: Cache, lengths: jax.Array, *, attend: int | None = None
    ) -> tuple[jax.Array, Cache]:
        """Run new `tokens` `[batch, T]` behind what `cache` holds, and put their keys and values in it.

        Row b's tokens stand at positions `lengths[b]` to `lengths[b] + T - 1` and see the cache up to themselves.
        Tokens may be padding at the end: let `lengths` not count them and the next call overwrites them. `attend`
        (static) has only the first `attend` places of the cache read; it must be at least every `lengths[b]` plus
        the row's real tokens. Every `lengths[b] + T` must be at most the cache's length: beyond it, earlier places
        would be overwritten.

        Returns hidden states `[batch, T, hidden]` after the final norm, and the new cache.
        """
        reach = cache.length if attend is None else min(attend, cache.length)
        positions = lengths[:, None] + jnp.arange(tokens.shape[1])
        rotation = rotary(positions, self.config)
        mask = jnp.arange(reach) <= positions[..., None]

        def layer(carry: tuple[jax.Array, Cache], scanned: tuple[Weights, jax.Array]) -> tuple[Any, None]:
            (x, cache), (weights, number) = carry, scanned
            attention = CachedAttention(cache, number, lengths, mask)
            x = block(x, weights, self.config, rotation, attention)
            return (x, attention.cache), None

        scanned = self.stacked(), jnp.arange(self.config.num_hidden_layers)
        x = self.embed(tokens)
        (x, cache), _ = jax.lax.scan(layer, (x, cache), scanned, unroll=self.unroll())
        return rms_norm(x, self.norm[...], self.config.rms_norm_eps), cache

    def stacked(self) -> Weights:
        """Return the layers' weights by name, each with the layers as its first axis."""
        return {name: param[...] for name, param in self.layers.items()}

    def unroll(self) -> int:
        """Return how many layers a scan over them is to unroll."""
        layers = self.config.num_hidden_layers
        return layers if layers <= UNROLLED_LAYERS else 1


def _attention(choice: str, length: int, segment_ids: jax.Array | None, spans: jax.Array | None) -> Attention:
    if spans is not None:
        return lambda q, k, v: attend_spans(q, k, v, spans)
    mask = causal_mask(length, segment_ids)
    return partial(attend_causal, mask=mask, segments=segment_ids is not None, choice=choice)


def block(
    x: jax.Array,
    weights: Weights,
    config: Qwen3Config,
    rotation: tuple[jax.Array, jax.Array],
    attention: Attention,
    *,
    parts: bool = False,
) -> jax.Array:
    """Apply one layer to `x` `[batch, tokens, hidden]`; `attention` gets its normed and rotated q, k and v.

    With `parts` the MLP is run on a few tokens at a time.
    """
    eps = config.rms_norm_eps
    y = rms_norm(x, weights["attention_norm"], eps)
    q = product("bte,ehd->bthd", y, weights, "q")
    k = product("bte,ekd->btkd", y, weights, "k")
    v = product("bte,ekd->btkd", y, weights, "v")
    q = rotate(rms_norm(q, weights["q_norm"], eps), rotation)
    k = rotate(rms_norm(k, weights["k_norm"], eps), rotation)
    x = x + product("bthd,hde->bte", attention(q, k, v), weights, "o")

    def after(x: jax.Array) -> jax.Array:
        return mlp(rms_norm(x, weights["mlp_norm"], eps), weights, config)

    return x + (in_parts(after, x) if parts else after(x))


def mlp(x: jax.Array, weights: Weights, config: Qwen3Config) -> jax.Array:
    """Apply a layer's MLP to `x` `[batch, tokens, hidden]`: one, or a mixture of experts."""
    return gated(x, weights) if config.moe is None else mix(x, weights, config.moe)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Divide `x` by the root mean square of its last axis (in float32) and multiply by `scale`."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * scale


def rotary(positions: jax.Array, config: Qwen3Config) -> tuple[jax.Array, jax.Array]:
    """Return the cosine and sine `[batch, length, 1, head_dim / 2]` (float32) at `positions` `[batch, length]`.

    With YaRN both are multiplied by its attention factor, as the configuration says.
    """
    turns, scale = frequencies(config.head_dim, config.rope_theta, config.yarn)
    angles = positions[..., None, None].astype(jnp.float32) * turns
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turn `x` `[batch, length, heads, head_dim]`; dimension i is paired with i + head_dim / 2."""
    cosine, sine = (part.astype(x.dtype) for part in rotation)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def random_weight(weight: Weight, rngs: nnx.Rngs, dtype: Any) -> nnx.Param[jax.Array]:
    """Return a weight at the start of a training: normal of standard deviation 0.02; a norm's scale is one."""
    if weight.is_norm:
        return nnx.Param(jnp.ones(weight.shape, dtype), axes=weight.axes)
    return nnx.Param(INIT_STDDEV * jax.random.normal(rngs.params(), weight.shape, dtype), axes=weight.axes)
