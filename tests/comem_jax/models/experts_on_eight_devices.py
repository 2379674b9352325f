"""Load the Qwen3-MoE folder in argv[1] on meshes of eight virtual devices and compare with one device."""

import sys

import jax
import numpy as np

from comem_jax.models import load
from comem_jax.models.sharding import make_mesh
from tests.comem_jax.models.on_eight_devices import logits_and_gradient

MESHES = [{"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 4, "context": 2}]


def check_mesh(folder, sizes, expected):
    mesh = make_mesh(**sizes)
    with jax.set_mesh(mesh):
        model = load(folder, mesh=mesh)
        gate = model.layers["gate"][...]
        parts = mesh.shape["tensor"], mesh.shape["fsdp"]
        assert gate.addressable_shards[0].data.shape == (1, 8 // parts[0], 32 // parts[1], 24)
        found = logits_and_gradient(model)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    folder = sys.argv[1]
    assert jax.device_count() == 8
    expected = logits_and_gradient(load(folder))
    for sizes in MESHES:
        check_mesh(folder, sizes, expected)
