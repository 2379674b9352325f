"""First weights for small models that must learn to look things up from few tokens.

Mimetic initialisation (Trockman and Kolter, 2023, arXiv 2305.09828): start self-attention from the forms it has after
long training. Here each head's query projection equals its key projection (a token looks for its like), and its output
projection is its value projection transposed (what it finds it copies). Every other head looks one position back: its
queries are its keys turned by one step of the rotary embedding. A direction that all embeddings share lets those heads
attend by position alone. With these, recall of two to five random pairs rose above guessing within 0.3 million tokens;
from plain random weights it had not within 0.8 million (measured on CPU, 2026-11-21: 132 names, four layers).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from comem_jax.models import Qwen3

EMBEDDING_STDDEV = 0.2
SHARED_DIRECTION = 1.5  # its size, in units of the embeddings' own standard deviation
SHARPNESS = 2.0  # the scale of the query and key norms, which bounds the logits
COPYING = 0.3  # the gain of what a head copies


def make_mimetic(model: Qwen3, seed: int) -> None:
    """Replace a new model's attention weights and embeddings, in place; its MLPs stay random."""
    config, rng = model.config, np.random.default_rng(seed)
    layers, kv, dim = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    group = config.num_attention_heads // kv
    shape = (layers, kv, config.hidden_size, dim)
    keys = _orthonormal(rng, shape)  # [layers, kv, hidden, dim]
    values = np.sqrt(COPYING) * _orthonormal(rng, shape)
    queries = np.repeat(keys, group, axis=1)
    queries[:, ::2] = _one_back(queries[:, ::2], config.rope_theta)
    _put(model.layers["q"], queries.transpose(0, 2, 1, 3))
    _put(model.layers["k"], keys.transpose(0, 2, 1, 3))
    _put(model.layers["v"], values.transpose(0, 2, 1, 3))
    _put(model.layers["o"], np.repeat(values, group, axis=1).transpose(0, 1, 3, 2))
    _put(model.layers["q_norm"], np.full((layers, dim), SHARPNESS))
    _put(model.layers["k_norm"], np.full((layers, dim), SHARPNESS))
    own = rng.normal(size=model.embedding.shape)
    shared = SHARED_DIRECTION * rng.normal(size=config.hidden_size)
    _put(model.embedding, EMBEDDING_STDDEV * (own + shared))


def _orthonormal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return random matrices [..., rows, columns] whose columns (or rows, if fewer) are orthonormal."""
    wide = shape[-1] > shape[-2]
    tall = (*shape[:-2], shape[-1], shape[-2]) if wide else shape
    made = np.linalg.qr(rng.normal(size=tall))[0]
    return np.swapaxes(made, -1, -2) if wide else made


def _one_back(keys: np.ndarray, theta: float) -> np.ndarray:
    """Turn projections [..., dim] so that, as queries, they match the key one position earlier."""
    half = keys.shape[-1] // 2
    angle = theta ** (-np.arange(half) / half)
    first, second = keys[..., :half], keys[..., half:]
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cosine + second * sine, second * cosine - first * sine], axis=-1)


def _put(parameter: nnx.Param[Any], value: np.ndarray) -> None:
    parameter[...] = jnp.asarray(value, parameter[...].dtype)
