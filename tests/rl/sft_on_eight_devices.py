"""An SFT step over packed rows on meshes of eight virtual devices against one device; argv[1] may be `all`."""

import functools
import sys
import time

import jax
import numpy as np

from comem_jax.models.sharding import make_mesh, shardings
from rl.data import RowStore, batches
from rl.sft import train_step
from tests.rl.meshes import DEVICES, chosen
from tests.rl.steps import GRAPHDEF, OPTIMIZER, assert_close, gradient_of, make_state

LENGTH = 256  # long enough that one device computes attention in blocks, and several as a whole


def packed_rows():
    """A batch of one sequence for each device: rows of many lengths, each with a prompt that is not trained on."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(9, 120, 60)
    loss = np.concatenate([np.arange(size) >= size // 2 for size in sizes])
    store = RowStore(rng.integers(0, 64, sizes.sum()), loss, np.cumsum(sizes))
    return next(iter(batches({"rows": store}, {"rows": 1.0}, LENGTH, DEVICES, 0)))


STEP = functools.partial(train_step, GRAPHDEF, OPTIMIZER)

if __name__ == "__main__":
    assert jax.device_count() == DEVICES
    batch = packed_rows()
    assert (batch["segments"].max(axis=1) > 1).all()
    expected, metrics = jax.jit(STEP)(make_state(), batch)
    for sizes in chosen(sys.argv[1:]):
        begun, mesh = time.monotonic(), make_mesh(**sizes)
        with jax.set_mesh(mesh):  # as `rl.sft.Trainer` lays it out
            state = jax.tree.map(jax.device_put, make_state(), shardings(make_state(), mesh))
            state, found = jax.jit(STEP, donate_argnums=0)(state, batch)
        print(sizes, f"{time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
        assert_close(gradient_of(state), gradient_of(expected))
        assert_close(found, metrics)
