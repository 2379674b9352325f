"""The option that says what reads keys and values on a GPU."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import pytest

from comem_jax.errors import UserError
from serving.service import ServeOptions, Service
from tests.comem_jax.test_cli import comem


def test_an_unknown_word_is_answered_with_the_nearest_and_exit_code_2(folder: Path) -> None:
    answer = comem("serve", "--model", str(folder), "--port", "0", "--attention", "palas")
    assert answer.returncode == 2
    assert answer.stderr == "comem: there is no attention 'palas'; did you mean 'pallas'?\n"


def test_the_kernel_is_refused_without_a_gpu(folder: Path) -> None:
    with pytest.raises(UserError, match="'pallas' needs an NVIDIA GPU, but JAX runs on cpu here"):
        Service(ServeOptions(folder, attention="pallas"))


@pytest.mark.parametrize("word", ["auto", "xla"])
def test_the_model_runs_as_was_asked(folder: Path, word: str) -> None:
    assert Service(ServeOptions(folder, attention=word))._model(jnp.float32, None).attention == word
