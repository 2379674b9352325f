"""Load the model folder in argv[1] on meshes of eight virtual devices and compare with one device."""

import sys

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from comem_jax.errors import UserError
from comem_jax.models import load
from comem_jax.models.sharding import make_mesh, shardings
from tests.comem_jax.models.tiny import random_tokens

TOKENS = random_tokens(4, 256)
MESHES = [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "context": 2}]


def logits_and_gradient(model):
    graphdef, params = nnx.split(model)

    def loss(params):
        logits = nnx.merge(graphdef, params)(TOKENS)
        return (logits**2).mean(), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return logits, gradient


def check_mesh(folder, sizes, expected):
    mesh = make_mesh(**sizes)
    with jax.set_mesh(mesh):
        model = load(folder, mesh=mesh)
        gate = model.layers["gate"][...]
        parts = mesh.shape["fsdp"], mesh.shape["tensor"]
        assert gate.addressable_shards[0].data.shape == (2, 32 // parts[0], 48 // parts[1])
        found = logits_and_gradient(model)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def check_shardings(folder):
    """An optimiser's moments lie where their weights do."""
    mesh = make_mesh(fsdp=4, tensor=2)
    params = nnx.state(load(folder, mesh=mesh), nnx.Param)
    places = shardings(optax.adam(1e-3).init(params), mesh)
    assert places[0].mu["layers"]["gate"].get_value() == params["layers"]["gate"][...].sharding
    assert places[0].count.is_fully_replicated


def check_errors(folder):
    with pytest.raises(UserError, match=r"tensor of size 8 does not divide the heads dimension \(4\) of layers.q"):
        load(folder, mesh=make_mesh(tensor=8))
    with pytest.raises(UserError, match="16 devices, but JAX sees 8"):
        make_mesh(data=16)
    with pytest.raises(UserError, match="did you mean 'tensor'"):
        make_mesh(tensr=2)


if __name__ == "__main__":
    folder = sys.argv[1]
    assert jax.device_count() == 8
    expected = logits_and_gradient(load(folder))
    for sizes in MESHES:
        check_mesh(folder, sizes, expected)
    check_shardings(folder)
    check_errors(folder)
