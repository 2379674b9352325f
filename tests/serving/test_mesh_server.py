"""`comem serve --mesh` as a process with eight virtual devices, against a server of one device."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import jax
import numpy as np
import openai
import pytest
from flax import nnx

from comem_jax.cli import main
from comem_jax.errors import UserError
from comem_jax.models import Qwen3, Qwen3Config, save
from serving.meshes import read_mesh, replica_meshes
from serving.running import start_server
from tests.serving.test_mesh import FLAGS
from tests.serving.test_signals import Served

PROMPTS = ["QWERTYUIOPASDFGHJKLZXCVB", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "THE LAZY DOG: THE QUICK"]


@pytest.fixture(scope="module")
def parted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a model of four heads, which four devices take one each of."""
    path = Path(shutil.copytree(folder, tmp_path_factory.mktemp("parted") / "tiny"))
    config = replace(Qwen3Config.from_folder(folder), num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1)
    model = Qwen3(config, rngs=nnx.Rngs(3))
    nnx.update(model, jax.tree.map(lambda x: x * 12 if x.ndim > 2 else x, nnx.state(model, nnx.Param)))
    save(model, path)
    return path


@pytest.fixture
def served(parted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    served = Served(parted, tmp_path / "log", "--mesh", "tensor=4,data=2", "--cache", "640")
    yield served
    served.process.kill()
    served.process.wait()


def answers(client: openai.OpenAI) -> tuple[list[str], list[float], list[int]]:
    """What a server says to prompts that grow: tokens, their log-probabilities, and how much of each prompt it had."""
    said, logprobs, cached, prompts = [], [], [], list(PROMPTS)
    for _ in range(2):
        for number, prompt in enumerate(prompts):
            answer = client.completions.create(
                model="tiny", prompt=prompt, max_tokens=6, temperature=0, logprobs=2, extra_body={"ignore_eos": True}
            )
            found = answer.choices[0].logprobs
            said += found.tokens
            logprobs += found.token_logprobs
            cached.append(answer.usage.prompt_tokens_details.cached_tokens)
            prompts[number] += f" fox{number}"
    return said, logprobs, cached


def test_eight_devices_answer_as_one(served: Served, parted: Path) -> None:
    with openai.OpenAI(base_url=served.url, api_key="the-key", max_retries=0, timeout=120) as client:
        tokens, logprobs, cached = answers(client)
    with start_server(parted, slots=1, window=64) as alone:
        alone.service.wait_ready(timeout=200)
        with openai.OpenAI(base_url=alone.url, api_key="none", max_retries=0, timeout=120) as client:
            expected, expected_logprobs, _ = answers(client)
    assert tokens == expected
    np.testing.assert_allclose(logprobs, expected_logprobs, rtol=0, atol=1e-4)
    assert min(cached[len(PROMPTS) :]) >= 16, cached  # a prompt that grew goes back to its pages
    metrics = httpx.get(served.url.removesuffix("/v1") + "/metrics").text
    counted = dict(re.findall(r"^(vllm:\w+)\{model_name=\"tiny\"\} (\S+)$", metrics, re.MULTILINE))
    assert float(counted["vllm:generation_tokens_total"]) == 6 * 2 * len(PROMPTS)
    assert float(counted["vllm:prefix_cache_hits_total"]) == sum(cached)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tensr=1", "'tensr' is not an axis of a server's mesh; did you mean 'tensor'?"),
        ("tensor=4,data=2", r"the mesh tensor=4,data=2 is of 8 devices, but JAX sees 1; tensor x data must be 1"),
        ("tensor", "'tensor' is no part of a mesh; write e.g. tensor=4,data=2"),
        ("tensor=0", "the mesh tensor=0 is of 0 devices"),
        ("data=1,data=1", "the mesh 'data=1,data=1' has the axis 'data' twice"),
    ],
)
def test_a_mesh_that_cannot_be_is_one_sentence(
    folder: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        replica_meshes(read_mesh(text))
    assert main(["serve", "--model", str(folder), "--port", "0", "--mesh", text]) == 2
    assert said in capsys.readouterr().err


def test_a_mesh_of_one_device_is_a_mesh(folder: Path) -> None:
    assert [mesh.shape["tensor"] for mesh in replica_meshes({"data": 1, "tensor": 1})] == [1]
