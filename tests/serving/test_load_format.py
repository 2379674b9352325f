"""A server of int8 weights, and one of random weights from a folder that has none."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
from flax import nnx

from comem_jax.errors import UserError
from comem_jax.models import Qwen3
from comem_jax.models.loading import load_dummy, quantize
from serving.running import start_server
from serving.service import ServeOptions, Service
from tests.serving.test_signals import HEADERS, Served

ASKED = {"model": "tiny", "prompt": [5, 9, 4, 7], "max_tokens": 6, "temperature": 0, "logprobs": 1, "ignore_eos": True}


@pytest.fixture
def bare(folder: Path, tmp_path: Path) -> Path:
    """The folder without its weights."""
    return Path(shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")))


def ask(url: str) -> list[float]:
    """The log-probabilities of the tokens that a server answers with."""
    body = httpx.post(url + "/completions", json=ASKED, headers=HEADERS, timeout=60).json()
    found: list[float] = body["choices"][0]["logprobs"]["token_logprobs"]
    return found


def greedy(model: Qwen3) -> list[float]:
    """The log-probabilities of the greedy continuation, by whole forward passes."""
    tokens, found = list(ASKED["prompt"]), []
    run = nnx.jit(Qwen3.__call__)
    for _ in range(6):
        padded = np.array([tokens + [0] * (16 - len(tokens))])
        logits = np.asarray(run(model, padded))[0, len(tokens) - 1].astype(float)
        found.append(-float(np.log(np.exp(logits - logits.max()).sum())))
        tokens.append(int(logits.argmax()))
    return found


def test_int8_weights_are_served(folder: Path, model: Qwen3) -> None:
    with start_server(folder, slots=1, window=64, quantize="int8") as server:
        server.service.wait_ready(timeout=200)
        found = ask(server.url)
    np.testing.assert_allclose(found, greedy(quantize(model)), atol=1e-3)
    assert np.abs(np.subtract(found, greedy(model))).max() > 1e-2


def test_an_answer_to_a_prompt_that_opens_the_reasoning_is_reasoning(folder: Path, tmp_path: Path) -> None:
    thinking = Path(shutil.copytree(folder, tmp_path / "tiny"))
    template = thinking / "chat_template.jinja"
    template.write_text(template.read_text() + "<think>\n")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "fox"}], "max_tokens": 6, "ignore_eos": True}
    with start_server(thinking, slots=1, window=64) as server:
        server.service.wait_ready(timeout=200)
        answer = httpx.post(server.url + "/chat/completions", json=body, headers=HEADERS, timeout=60).json()
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"]
    assert not message["content"]


def test_the_command_serves_random_weights_as_int8(bare: Path, tmp_path: Path) -> None:
    served = Served(bare, tmp_path / "log", "--load-format", "dummy", "--quantize", "int8", "--name", "tiny")
    try:
        found = ask(served.url)
    finally:
        served.process.kill()
        served.process.wait()
    model = load_dummy(bare)
    np.testing.assert_allclose(found, greedy(quantize(model)), atol=1e-5)
    assert np.abs(np.subtract(found, greedy(model))).max() > 1e-4


def test_without_them_weights_are_missed(bare: Path) -> None:
    with (
        start_server(bare, slots=1, window=64) as server,
        pytest.raises(UserError, match=r"neither model\.safetensors"),
    ):
        server.service.wait_ready(timeout=60)


@pytest.mark.parametrize(
    ("option", "said"),
    [({"quantize": "int4"}, "no quantize 'int4'"), ({"load_format": "dumy"}, "did you mean 'dummy'")],
)
def test_an_unknown_way_is_named(folder: Path, option: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Service(ServeOptions(folder, **option))
