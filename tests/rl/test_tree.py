"""A shared trunk gives the loss and every gradient of separate sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from comem_jax.errors import UserError
from comem_jax.models import save
from rl.tree import Cut, Layout, Tree, lay_out, response_logprobs
from tests.comem_jax.models.tiny import tiny_model
from tests.rl.meshes import on_eight_devices
from tests.rl.trees import (
    TREES,
    assert_same,
    laid_out,
    make_trees,
    separate_loss,
    sequences,
    tree_loss,
    value_and_gradient,
)

ROOMY = Layout(trunk=40, closings=3, closing=8, responses=5, response=12)  # every one of TREES fits into it


def shared(layout, temperature=1.0):
    def loss(model, batch, weights):
        return tree_loss(model, batch, layout, weights, temperature=temperature)

    return loss


in_roomy = shared(ROOMY)


def both(trees, layout, loss):
    """Loss and gradients of the trees and of separate sequences."""
    graphdef, params = nnx.split(tiny_model())
    batch, _, weights, rows = laid_out(trees, layout)
    return (
        value_and_gradient(loss, graphdef, params, batch, weights),
        value_and_gradient(separate_loss, graphdef, params, rows),
    )


@pytest.mark.parametrize("name", TREES)
def test_loss_and_every_gradient_equal_separate_sequences(name):
    trees = make_trees(TREES[name])
    assert_same(*both(trees + [Tree([], [])] * (3 - len(trees)), ROOMY, in_roomy))


@pytest.mark.parametrize("name", ["empty closing", "unequal trees"])
def test_a_layout_that_just_fits_gives_the_same(name):
    trees = make_trees(TREES[name])
    layout = Layout.fit(trees, multiple=1, slot_multiple=1)
    assert_same(*both(trees, layout, shared(layout)))


def test_temperature_divides_the_logits():
    model = tiny_model()
    batch, layout, weights, rows = laid_out(make_trees(TREES["ragged responses"]))
    found = nnx.jit(shared(layout, temperature=0.5))(model, batch, weights)
    np.testing.assert_allclose(found, separate_loss(model, rows, temperature=0.5), rtol=1e-5)


def test_entropy_and_mask():
    trees, model = make_trees(TREES["ragged responses"]), tiny_model()
    batch, layout, _, _ = laid_out(trees)
    logprobs, entropy = nnx.jit(response_logprobs, static_argnums=2)(model, batch, layout)
    assert logprobs.dtype == entropy.dtype == jnp.float32
    assert not np.asarray(logprobs)[batch.mask == 0].any()
    assert not np.asarray(entropy)[batch.mask == 0].any()
    prompt, response = next(iter(sequences(trees)))
    logits = np.asarray(model(jnp.asarray([prompt + response])), np.float64)[0, len(prompt) - 1 : -1]
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(entropy[0, 0, : len(response)], -(weights * np.log(weights)).sum(-1), rtol=1e-4)


def test_the_layout_holds_the_trees_and_little_more():
    trees = make_trees(TREES["unequal trees"])
    layout = Layout.fit(trees, multiple=32, slot_multiple=4)
    assert layout == Layout(trunk=64, closings=3, closing=4, responses=5, response=8)
    assert layout.length == 64 + 3 * 4 + 5 * 8 == lay_out(trees, layout).tokens.shape[1]
    seen = lay_out(trees, layout).cut.tolist()
    assert seen == [[0, 0, -1, -1, -1], [0, 1, 1, 1, 2], [0, -1, -1, -1, -1]]


def test_what_no_cut_sees_is_left_out():
    tree = Tree(list(range(50)), [Cut(10, [1, 2], [[3]])])
    assert Layout.fit([tree], multiple=1).trunk == 10
    assert lay_out([tree], Layout(10, 1, 1, 1, 1)).tokens.tolist() == [[*range(10), 1, 2]]


def test_no_array_of_prompt_by_vocabulary_exists():
    vocab, prompt = 32768, 4096
    model = tiny_model(vocab_size=vocab, num_hidden_layers=1, tie_word_embeddings=False)
    trees = make_trees([(prompt, [(prompt, 0, [32] * 8)])])
    layout = Layout.fit(trees)
    graphdef, params = nnx.split(model)
    batch = lay_out(trees, layout)

    loss = jax.jit(jax.grad(lambda p: tree_loss(nnx.merge(graphdef, p), batch, layout, 1.0, chunk=32)))
    temporary = loss.lower(params).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 0.1 * prompt * vocab * 4  # the responses' own logits, all at once, would be 34 MB


@pytest.mark.parametrize(
    ("tree", "layout", "says"),
    [
        (Tree([1, 2], [Cut(3, [1], [[1]])]), Layout(8, 1, 4, 1, 4), "cut 0 of tree 0 is at 3, but its trunk has 2"),
        (Tree([1, 2], [Cut(-1, [1], [[1]])]), Layout(8, 1, 4, 1, 4), "is at -1"),
        (Tree([1, 2], [Cut(0, [], [[1]])]), Layout(8, 1, 4, 1, 4), "has no prompt"),
        (Tree([1, 2, 3], [Cut(3, [1], [[1]])]), Layout(2, 1, 4, 1, 4), "needs 3 trunk tokens, but the layout has 2"),
        (Tree([1], [Cut(1, [1], [])] * 2), Layout(2, 1, 4, 1, 4), "needs 2 closings"),
        (Tree([1], [Cut(1, [1] * 4, [[1]])]), Layout(2, 1, 2, 1, 4), "needs 3 closing tokens"),
        (Tree([1], [Cut(1, [1], [[1], [2]])]), Layout(2, 1, 2, 1, 4), "needs 2 responses"),
        (Tree([1], [Cut(1, [1], [[1] * 5])]), Layout(2, 1, 2, 1, 4), "needs 5 response tokens"),
    ],
)
def test_what_does_not_fit_is_said(tree, layout, says):
    with pytest.raises(UserError, match=says):
        lay_out([tree], layout)


def test_large_vocabularies_scatter_nothing_in_the_head():
    model = tiny_model(vocab_size=9000, num_hidden_layers=1, tie_word_embeddings=False)
    batch, layout, weights, _ = laid_out(make_trees(TREES["one cut"]))
    graphdef, params = nnx.split(model)
    loss = jax.grad(lambda head: tree_loss(nnx.merge(graphdef, {**params, "lm_head": head}), batch, layout, weights))
    assert "scatter" not in str(jax.make_jaxpr(loss)(params["lm_head"]))


def test_eight_devices_give_the_same_numbers(tmp_path):
    save(tiny_model(vocab_size=64), tmp_path)
    on_eight_devices("tests.rl.trees_on_eight_devices", str(tmp_path))
