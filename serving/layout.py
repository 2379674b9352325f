"""Where an engine's arrays lie on a mesh, said once for all of its compiled programs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from comem_jax.models.sharding import axes_spec


class Layout:
    """The places of an engine's arrays: weights lie where they were loaded, pages are parted by their kv heads, what is
    kept of each token of the vocabulary is parted like the logits, and all else is on every device. Without a mesh each
    is None: where JAX puts it.
    """

    weights = None

    def __init__(self, mesh: Mesh | None) -> None:
        self.mesh = mesh
        self.pages = self._parted("layers", "whole", "kv_heads")
        self.vocab = self._parted("whole", "vocab")
        self.whole = self._parted()

    def jit(self, program: Callable[..., Any], takes: Any, gives: Any, donate: Any = ()) -> Any:
        """Return `program` compiled for arguments that lie where `takes` says, its results where `gives` does."""
        return jax.jit(self._on_mesh(program), in_shardings=takes, out_shardings=gives, donate_argnums=donate)

    def put(self, table: np.ndarray) -> jax.Array:
        """Return a copy of `table` on every device."""
        return jax.device_put(table.copy(), self.whole)

    def _parted(self, *axes: str) -> NamedSharding | None:
        return None if self.mesh is None else NamedSharding(self.mesh, axes_spec(self.mesh, *axes))

    def _on_mesh(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """Let `program` know the mesh while it is traced, whichever thread does it."""
        mesh = self.mesh
        if mesh is None:
            return program

        @wraps(program)
        def on_mesh(*arguments: Any) -> Any:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return program(*arguments)

        return on_mesh
