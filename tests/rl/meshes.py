"""Every mesh of eight devices, and modules run with as many virtual ones, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from math import prod
from pathlib import Path

from comem_jax.models.sharding import MESH_AXES

DEVICES = 8
MESHES = [
    dict(zip(MESH_AXES, sizes, strict=True)) for sizes in product((1, 2, 4, 8), repeat=4) if prod(sizes) == DEVICES
]
# Every axis with every other: what `make test` has time for. `make test-slow` takes all of them.
SPREAD = [
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"data": 2, "fsdp": 2, "context": 2},
    {"fsdp": 2, "tensor": 2, "context": 2},
    {"context": 8},
]


def chosen(arguments: list[str]) -> list[dict[str, int]]:
    """Return the meshes that a module's command line asks for: `all`, or else the spread."""
    return MESHES if arguments == ["all"] else SPREAD


def on_eight_devices(module: str, *arguments: str) -> None:
    """Run a module on eight virtual CPU devices; fails with the end of its standard error."""
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command, root = [sys.executable, "-m", module, *arguments], Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
