"""A GRPO step on meshes of eight virtual devices against one device; argv[1] may be `all`."""

import sys
import time

import jax
from jax.sharding import NamedSharding, PartitionSpec

from comem_jax.models.sharding import RULES, make_mesh, shardings
from tests.rl.meshes import DEVICES, chosen
from tests.rl.steps import assert_close, gradient_of, make_batch, make_state, make_step


def step_on(sizes):
    """A step laid out as `rl.learner` does it; in two parts where each of them has a row for every device."""
    mesh, rows = make_mesh(**sizes), sizes.get("data", 1) * sizes.get("fsdp", 1)
    with jax.set_mesh(mesh):
        places = shardings(make_state(), mesh)
        batched, everywhere = NamedSharding(mesh, PartitionSpec(RULES["batch"])), NamedSharding(mesh, PartitionSpec())
        step = jax.jit(
            make_step(2 if 2 * rows <= DEVICES else 1),
            in_shardings=(places, batched),
            out_shardings=(places, everywhere),
        )
        return step(jax.tree.map(jax.device_put, make_state(), places), jax.device_put(make_batch(), batched))


if __name__ == "__main__":
    assert jax.device_count() == DEVICES
    expected, metrics = jax.jit(make_step())(make_state(), make_batch())
    for sizes in chosen(sys.argv[1:]):
        begun = time.monotonic()
        state, found = step_on(sizes)
        print(sizes, f"{time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
        assert_close(gradient_of(state), gradient_of(expected))
        assert_close(found, metrics)
