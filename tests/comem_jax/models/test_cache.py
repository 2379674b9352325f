"""Cached decoding against the full forward pass."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from comem_jax.models import init_cache
from tests.comem_jax.models.tiny import HEADS, random_tokens, tiny_model

LENGTH = 24


@partial(jax.jit, static_argnames=("graphdef", "attend"), donate_argnames="cache")
def extend(graphdef, params, tokens, cache, *, lengths, attend):
    return nnx.merge(graphdef, params).extend(tokens, cache, lengths, attend=attend)


@nnx.jit
def full(model, tokens):
    return model.hidden(tokens)


class Decoder:
    """A model, its cache, and how much of each row is real."""

    def __init__(self, batch, **changes):
        self.model = tiny_model(**changes)
        self.graphdef, self.params = nnx.split(self.model)
        self.cache = init_cache(self.model.config, batch, LENGTH)
        self.lengths = np.zeros(batch, int)

    def feed(self, tokens, real=None, attend=None):
        where = {"lengths": jnp.array(self.lengths), "attend": attend}
        hidden, self.cache = extend(self.graphdef, self.params, tokens, self.cache, **where)
        self.lengths = self.lengths + (tokens.shape[1] if real is None else np.asarray(real))
        return np.asarray(hidden)


@pytest.mark.parametrize(("layers", "heads", "kv_heads", "head_dim"), [*((2, *h) for h in HEADS[::2]), (6, *HEADS[3])])
def test_chunks_and_steps_equal_the_full_forward(layers, heads, kv_heads, head_dim):
    shape = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}
    decoder = Decoder(batch=2, num_hidden_layers=layers, **shape)
    tokens = random_tokens(2, 18)
    parts = [decoder.feed(tokens[:, :7]), decoder.feed(tokens[:, 7:14])]
    parts += [decoder.feed(tokens[:, i : i + 1]) for i in range(14, 18)]
    expected = full(decoder.model, tokens)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("attend", [None, 14])
def test_rows_of_different_lengths_with_padded_chunks(attend):
    sizes, steps = np.array([3, 9, 1]), 4
    decoder = Decoder(batch=3)
    tokens = random_tokens(3, 13)
    expected = np.asarray(full(decoder.model, tokens))
    padded = np.where(np.arange(9) < sizes[:, None], tokens[:, :9], 7)
    first = decoder.feed(padded, real=sizes, attend=attend)
    for row, size in enumerate(sizes):
        np.testing.assert_allclose(first[row, :size], expected[row, :size], rtol=0, atol=1e-4)
    for _ in range(steps):
        rows, at = np.arange(3), decoder.lengths
        step = decoder.feed(tokens[rows, at][:, None], attend=attend)
        np.testing.assert_allclose(step[:, 0], expected[rows, at], rtol=0, atol=1e-4)


def test_attend_leaves_the_rest_of_the_cache_unread():
    decoder = Decoder(batch=2)
    decoder.cache = jax.tree.map(lambda x: x.at[:, :, 12:].set(jnp.nan), decoder.cache)
    assert np.isfinite(decoder.feed(random_tokens(2, 6), attend=12)).all()


def test_other_rows_and_places_stay_as_they_were():
    decoder = Decoder(batch=2)
    decoder.cache = jax.tree.map(lambda x: x + 5, decoder.cache)
    decoder.lengths = np.array([4, 10])
    decoder.feed(random_tokens(2, 3))
    for array in (decoder.cache.keys, decoder.cache.values):
        untouched = np.asarray(array == 5).all(axis=(0, 3, 4))
        written = [[4 <= i < 7 for i in range(LENGTH)], [10 <= i < 13 for i in range(LENGTH)]]
        assert np.array_equal(untouched, ~np.array(written))


def test_a_bfloat16_cache_serves_a_float32_model():
    decoder = Decoder(batch=2)
    decoder.cache = init_cache(decoder.model.config, 2, LENGTH, jnp.bfloat16)
    tokens = random_tokens(2, 6)
    hidden = decoder.feed(tokens)
    assert decoder.cache.keys.dtype == jnp.bfloat16
    np.testing.assert_allclose(hidden, full(decoder.model, tokens), rtol=0, atol=0.05)


def test_donated_cache_is_written_in_place():
    decoder = Decoder(batch=2)
    pointer = decoder.cache.keys.unsafe_buffer_pointer()
    decoder.feed(random_tokens(2, 1))
    assert decoder.cache.keys.unsafe_buffer_pointer() == pointer
