"""The embedding look-up's gradient against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comem_jax.models.embedding import ONE_HOT_VOCAB, embed


@pytest.mark.parametrize("vocab", [50, ONE_HOT_VOCAB + 1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradient_is_the_scatter_add(vocab, dtype):
    table = jax.random.normal(jax.random.key(0), (vocab, 6), dtype)
    tokens = np.random.default_rng(0).integers(0, 20, (3, 16)) % vocab
    target = jax.random.normal(jax.random.key(1), (3, 16, 6), dtype)

    def gradient(look_up):
        return np.asarray(jax.grad(lambda t: (look_up(t, tokens) * target).sum())(table), np.float32)

    assert np.array_equal(embed(table, tokens), table[tokens])
    # bfloat16 sums round in the order of their terms
    tolerance = 1e-5 if dtype == jnp.float32 else 0.1
    np.testing.assert_allclose(gradient(embed), gradient(lambda t, i: t[i]), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("vocab", "scatters"), [(50, False), (ONE_HOT_VOCAB + 1, True)])
def test_small_vocabularies_take_a_product(vocab, scatters):
    jaxpr = jax.make_jaxpr(jax.grad(lambda t: embed(t, jnp.arange(4)).sum()))(jnp.ones((vocab, 2)))
    assert ("scatter" in str(jaxpr)) == scatters
