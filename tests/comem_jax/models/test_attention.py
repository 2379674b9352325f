"""Attention against `jax.nn.dot_product_attention`, forward and backward."""

import jax
import numpy as np
import pytest

from comem_jax.models.attention import attend, causal_mask


def arrays(length, kv_heads):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, length, 4, 8), (2, length, kv_heads, 8), (2, length, kv_heads, 8)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize(("length", "kv_heads"), [(7, 4), (7, 1), (300, 2)])
def test_values_and_gradients_equal_the_library_s(length, kv_heads):
    mask = causal_mask(length, np.sort(np.random.default_rng(0).integers(0, 3, (2, length)), axis=1))

    def ours(q, k, v):
        return attend(q, k, v, mask, causal=True)

    def library(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])

    inputs = arrays(length, kv_heads)
    np.testing.assert_allclose(jax.jit(ours)(*inputs), jax.jit(library)(*inputs), rtol=0, atol=1e-5)
    for got, expected in zip(*(gradients(f, inputs) for f in (ours, library)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def gradients(function, inputs):
    return jax.jit(jax.grad(lambda *qkv: (function(*qkv) ** 2).sum(), (0, 1, 2)))(*inputs)


def test_large_scores_do_not_overflow():
    q, k, v = arrays(7, 2)
    out = attend(q * 1e4, k, v, causal_mask(7, None))
    assert np.isfinite(out).all()


def test_a_query_that_may_look_nowhere_gets_the_mean():
    q, k, v = arrays(7, 4)
    out = attend(q, k, v, np.zeros((1, 7, 7), bool))
    np.testing.assert_allclose(out[:, 0], np.asarray(v).mean(1), rtol=0, atol=1e-5)


def test_blocks_skip_what_is_masked():
    q, k, v = arrays(512, 4)
    mask = causal_mask(512, None)

    def flops(causal):
        compiled = jax.jit(lambda *qkv: attend(*qkv, mask, causal=causal)).lower(q, k, v).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(causal=True) < 0.7 * flops(causal=False)
