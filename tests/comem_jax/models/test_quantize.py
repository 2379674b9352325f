"""int8 weights: their error, on the pocket models too, and every way to run them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from comem_jax.chat import ChatFormat
from comem_jax.errors import UserError
from comem_jax.models import Qwen3, load, save
from comem_jax.models.config import Moe
from comem_jax.models.loading import from_arrays, quantize, to_arrays
from comem_jax.models.quantize import to_int8
from comem_jax.models.weights import weight_table
from envs.pocket.weights import AGENT, MEMORY
from envs.pocket.world import split_seed
from rl.pocket import texts as pocket_texts
from tests.comem_jax.models.paths import check_paths
from tests.comem_jax.models.tiny import random_tokens, tiny_model

MOE = Moe(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True)


@pytest.mark.parametrize("axes", [(1,), (1, 2), (0,)])
def test_a_weight_is_off_by_half_a_scale_at_most(axes):
    array = jax.random.normal(jax.random.key(0), (3, 8, 5)).at[1].multiply(100)
    numbers, scale = to_int8(array, axes)
    assert numbers.dtype == jnp.int8
    wide = jnp.expand_dims(scale, axes)
    np.testing.assert_array_equal(jnp.abs(numbers).max(axis=axes), 127)
    assert (jnp.abs(numbers * wide - array) <= 0.5001 * wide).all()


def test_a_channel_of_zeros_stays_zeros():
    numbers, scale = to_int8(jnp.zeros((4, 2)), (0,))
    assert not numbers.any()
    assert not scale.any()


def rounded(model):
    """A float model of the very numbers that the int8 model stands for."""
    arrays, table = to_arrays(quantize(model)), weight_table(model.config)
    for name, weight in table.items():
        if (scale := arrays.pop(f"{name}_scale", None)) is not None:
            axes = tuple(range(weight.stacked, weight.stacked + weight.inputs)) or (1,)
            arrays[name] = arrays[name] * jnp.expand_dims(scale, axes)
    return from_arrays(model.config, arrays)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, "moe": MOE}])
def test_the_products_are_those_of_the_rounded_weights(changes):
    model = tiny_model(**changes)
    ours, theirs = quantize(model), rounded(model)
    assert ours.layers["gate"][...].dtype == jnp.int8
    tokens = random_tokens(2, 17)
    run = nnx.jit(Qwen3.__call__)
    np.testing.assert_allclose(run(ours, tokens), run(theirs, tokens), rtol=0, atol=1e-5)


def test_every_path_gives_the_full_forward():
    check_paths(quantize(tiny_model(num_hidden_layers=1, moe=MOE)))


@pytest.fixture(scope="module")
def texts():
    """What the pocket agent and its memory model read in one task, oracle's actions and all."""
    return list(pocket_texts([split_seed("test", 0)], ChatFormat.load(AGENT)))


@pytest.mark.parametrize("folder", [AGENT, MEMORY], ids=["agent", "memory"])
def test_the_pocket_models_keep_their_tokens(folder, texts):
    """Measured: 3.4% and 3.0% of the logits' spread; 98.8% and 98.0% of the likeliest tokens are the same."""
    run, encode = nnx.jit(Qwen3.__call__), ChatFormat.load(folder).encode
    stream = [token for text in texts for token in encode(text)]
    tokens = np.array(stream[: len(stream) // 256 * 256]).reshape(-1, 256)
    exact, near = (np.asarray(run(load(folder, int8=int8), tokens)) for int8 in (False, True))
    error = np.sqrt(np.square(near - exact).mean() / exact.var(axis=-1).mean())
    same = (near.argmax(-1) == exact.argmax(-1)).mean()
    assert error < 0.05
    assert same > 0.97


def test_bfloat16_activations():
    narrow = tiny_model(dtype=jnp.bfloat16)
    tokens, run = random_tokens(2, 9), nnx.jit(Qwen3.__call__)
    expected = run(narrow, tokens)
    ours = quantize(narrow)
    assert nnx.eval_shape(Qwen3.hidden, ours, tokens).dtype == jnp.bfloat16
    logits = run(ours, tokens)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=0.03)


def test_the_weights_take_a_quarter():
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    before, after = (sum(x.nbytes for x in jax.tree.leaves(nnx.state(m))) for m in (
        tiny_model(**sizes), quantize(tiny_model(**sizes))
    ))  # fmt: skip
    assert after < 0.27 * before


def test_int8_weights_are_not_written(tmp_path):
    with pytest.raises(UserError, match="int8"):
        save(quantize(tiny_model()), tmp_path / "out")
    assert not (tmp_path / "out").exists()
