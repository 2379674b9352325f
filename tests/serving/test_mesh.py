"""An engine whose model lies on many devices says what one on a single device says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# As many virtual devices, and programs that are compiled in less time and run in more: here they run a few times each.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
ROOT = Path(__file__).parents[2]


def on_eight_devices(*arguments: str) -> None:
    """Run the comparison in a process of its own; fails with the end of its standard error."""
    command = [sys.executable, "-m", "tests.serving.engine_on_eight_devices", *arguments]
    environment = os.environ | {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_parted_model_says_the_same() -> None:
    on_eight_devices()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_kind_of_model_says_the_same_on_every_mesh() -> None:
    on_eight_devices("all")
