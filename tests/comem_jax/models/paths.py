"""Every way to run a model, against the forward pass over whole sequences."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx

from comem_jax.models import Qwen3, init_cache
from comem_jax.models.branches import prefill
from comem_jax.models.paged import Step, put, run_chunk, run_step
from comem_jax.models.pages import Reads, init_pages
from tests.comem_jax.models.tiny import random_tokens

TOKENS = random_tokens(1, 41)
BEFORE = 36  # tokens that are there when the rest come
TOLERANCE = 1e-4


def check_paths(model: Qwen3) -> None:
    """Run cached decoding, decoding from pages and a trunk's prefill; each must give the forward pass's numbers."""
    expected = np.asarray(nnx.jit(Qwen3.hidden)(model, TOKENS))
    check_cache(model, expected)
    check_pages(model, expected[0])


def check_cache(model: Qwen3, expected: np.ndarray) -> None:
    """Run a chunk and what follows it through the cache; a trunk's keys and values are the same."""
    extend, cache = nnx.jit(Qwen3.extend), init_cache(model.config, 1, 41)
    first, cache = extend(model, TOKENS[:, :BEFORE], cache, jnp.array([0]))
    trunk = nnx.jit(prefill)(model, TOKENS[:, :BEFORE])
    for name in ("keys", "values"):
        found = getattr(cache, name)[:, :, :BEFORE]
        np.testing.assert_allclose(getattr(trunk, name), found, rtol=0, atol=TOLERANCE)
    second, _ = extend(model, TOKENS[:, BEFORE:], cache, jnp.array([BEFORE]))
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), expected, rtol=0, atol=TOLERANCE)


def check_pages(model: Qwen3, expected: np.ndarray) -> None:
    """Run a chunk of a prompt, put it in a page and decode one token behind it."""
    pages = init_pages(model.config, 2, BEFORE, jnp.float32)
    nothing = Reads(np.zeros((1, 1, 1), int), np.zeros((1, 1), int), np.int32(0))
    hidden, new = nnx.jit(run_chunk)(model, pages, TOKENS[0, :BEFORE], jnp.int32(0), nothing)
    np.testing.assert_allclose(hidden, expected[:BEFORE], rtol=0, atol=TOLERANCE)
    pages = put(pages, new, jnp.array([1]), jnp.array([0]), jnp.int32(1))
    reads = Reads(np.array([[[1]]]), np.array([[BEFORE]]), np.int32(1), np.array([[[0]]]))
    recent = init_pages(model.config, 1, 4, jnp.float32)
    step = Step(jnp.array(TOKENS[0, BEFORE : BEFORE + 1]), jnp.array([BEFORE]), jnp.int32(0))
    hidden, _ = nnx.jit(run_step)(model, pages, recent, step, [reads])
    np.testing.assert_allclose(hidden[0], expected[BEFORE], rtol=0, atol=TOLERANCE)
