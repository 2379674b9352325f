"""Each checkpointing policy gives the same gradients, and keeps as much as its name says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from comem_jax.errors import UserError
from comem_jax.models.remat import POLICIES
from tests.comem_jax.models.tiny import random_tokens, tiny_model

LENGTH = 256


@functools.cache
def compiled(remat):
    """The compiled gradient of a model of many scanned layers, its jaxpr and its parameters."""
    graphdef, params = nnx.split(tiny_model(remat=remat, num_hidden_layers=24))
    spans = np.stack([np.zeros(LENGTH, int), np.arange(LENGTH) + 1], -1)[None, :, None]
    tokens = random_tokens(1, LENGTH)
    gradient = jax.jit(jax.grad(lambda p: jnp.square(nnx.merge(graphdef, p).hidden(tokens, spans=spans)).mean()))
    traced = gradient.trace(params)
    return traced.lower().compile(), str(traced.jaxpr), params


@pytest.mark.parametrize("remat", sorted(set(POLICIES) - {"none"}))
def test_every_policy_gives_the_same_gradients(remat):
    (plain, jaxpr, params), (again, other, _) = compiled("none"), compiled(remat)
    assert "remat" in other
    assert "remat" not in jaxpr
    for a, b in zip(jax.tree.leaves(plain(params)), jax.tree.leaves(again(params)), strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * float(np.abs(a).max()))


def test_an_mlp_in_parts_gives_the_same_gradients_and_keeps_less(monkeypatch):
    monkeypatch.setattr("comem_jax.models.remat.MLP_TOKENS", 100)  # which does not divide the length
    found = {}
    for name in ("none", "mlp"):
        graphdef, params = nnx.split(tiny_model(remat=name, intermediate_size=2048))
        loss = functools.partial(
            lambda g, p: jnp.square(nnx.merge(g, p).hidden(random_tokens(2, LENGTH))).mean(), graphdef
        )
        gradient = jax.jit(jax.grad(loss)).lower(params).compile()
        found[name] = gradient(params), gradient.memory_analysis().temp_size_in_bytes
    for a, b in zip(jax.tree.leaves(found["none"][0]), jax.tree.leaves(found["mlp"][0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * float(np.abs(a).max()))
    assert found["mlp"][1] < 0.7 * found["none"][1]


def test_the_policies_keep_ever_more():
    kept = [compiled(name)[0].memory_analysis().temp_size_in_bytes for name in ("layer", "attention", "dots", "none")]
    assert kept == sorted(kept)
    assert len(set(kept)) == 4
    assert kept[0] < kept[3] / 2


def test_kept_attention_is_not_computed_again():
    work = {name: compiled(name)[0].cost_analysis()["flops"] for name in ("none", "layer", "attention")}
    assert work["none"] < work["attention"] < work["layer"]


def test_offloaded_inputs_lie_in_the_host_s_memory():
    assert "MemorySpace.Host" in compiled("offload")[1]
    assert "MemorySpace.Host" not in compiled("layer")[1]


def test_an_unknown_policy_is_named():
    with pytest.raises(UserError, match="did you mean 'layer'"):
        tiny_model(remat="layers")
