"""Where weights and activations lie on a mesh: logical axis names, and one table to mesh axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from comem_jax.errors import UserError, nearest

MESH_AXES = ("data", "fsdp", "tensor", "context")

RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "hidden": (),
    "whole": (),  # on every device, whatever its size
    "attention_heads": ("tensor", "context"),  # inside attention, where the length is whole
    # weights
    "layers": (),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "experts": ("tensor",),
    "expert_mlp": (),
    "routes": (),  # the router is small, and each token's choice is among all experts
}


def make_mesh(**sizes: int) -> Mesh:
    """Return a mesh over the first devices, e.g. `make_mesh(fsdp=4, tensor=2)`; axes left out have size 1.

    Raises `UserError` for an unknown axis or where there are too few devices.
    """
    for axis in sizes:
        if axis not in MESH_AXES:
            raise UserError(f"{axis!r} is not a mesh axis{nearest(axis, MESH_AXES)}")
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    needed, found = prod(shape), jax.device_count()
    if needed > found:
        raise UserError(f"The mesh {sizes} needs {needed} devices, but JAX sees {found}.")
    auto = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, devices=jax.devices()[:needed], axis_types=auto)


def weight_sharding(mesh: Mesh, name: str, shape: Sequence[int], axes: Sequence[str]) -> NamedSharding:
    """Return where the weight `name`, with logical `axes`, lies on `mesh`.

    Raises `UserError` where the mesh's sizes do not divide the weight's.
    """
    spec = []
    for size, axis in zip(shape, axes, strict=True):
        found = mesh_axes(mesh, axis)
        parts = prod(mesh.shape[a] for a in found)
        if size % parts:
            raise UserError(
                f"Mesh axis {'x'.join(found)} of size {parts} does not divide the {axis} dimension ({size}) of {name}."
            )
        spec.append(found or None)
    return NamedSharding(mesh, PartitionSpec(*spec))


def shardings(state: Any, mesh: Mesh) -> Any:
    """Return a tree like `state` (parameters, or an optimiser's state over them) of where each array lies.

    Weights follow their logical axes; every other array (counts, keys) is on all devices.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        if not jax.tree.leaves(leaf):  # a parameter that this part of an optimiser leaves out
            return leaf
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return leaf.replace(weight_sharding(mesh, name, leaf.shape, leaf.get_metadata("axes")))

    return jax.tree_util.tree_map_with_path(place, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Lay the activation `x` out by its logical `axes` on the mesh set by `jax.set_mesh`; without one, do nothing.

    A dimension that the mesh axes do not divide (one prompt on eight devices) is parted by the first of them alone, or
    stays whole: only speed depends on it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    placed: jax.Array = jax.lax.with_sharding_constraint(x, activation_spec(mesh, x.shape, *axes))
    return placed


def activation_spec(mesh: Any, shape: Sequence[int], *axes: str) -> PartitionSpec:
    """Return how an activation of this `shape` with logical `axes` is parted on `mesh`, as `constrain` does it."""
    spec = []
    for size, axis in zip(shape, axes, strict=True):
        found = mesh_axes(mesh, axis)
        while size % prod(mesh.shape[a] for a in found):
            found = found[:-1]
        spec.append(found or None)
    return PartitionSpec(*spec)


def on_each_device(function: Callable[..., Any], takes: Sequence[Sequence[str]], gives: Sequence[str]) -> Any:
    """Return `function` run by every device of the mesh set by `jax.set_mesh` on its own part of the arguments.

    `takes` are the logical axes of each argument (or of every array in it), `gives` those of the result; axes at the
    end may be left out. Sizes must be divided by the mesh's. Without a mesh it is `function` itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function
    specs = tuple(axes_spec(mesh, *axes) for axes in takes)
    return jax.shard_map(function, in_specs=specs, out_specs=axes_spec(mesh, *gives), check_vma=False)


def axes_spec(mesh: Any, *axes: str) -> PartitionSpec:
    """Return how an array with logical `axes` is parted on `mesh`."""
    return PartitionSpec(*(mesh_axes(mesh, axis) or None for axis in axes))


def is_split(axis: str) -> bool:
    """Return whether the mesh set by `jax.set_mesh` parts the logical `axis` among devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(mesh.shape[a] > 1 for a in mesh_axes(mesh, axis))


def mesh_axes(mesh: Any, axis: str) -> tuple[str, ...]:
    """Return the axes of `mesh` that part the logical `axis`."""
    return tuple(a for a in RULES[axis] if a in mesh.axis_names)
