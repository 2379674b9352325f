"""A tiny random Qwen3 with a byte-level tokenizer, as a Hugging Face folder, and a server over it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import openai
import pytest
from flax import nnx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from comem_jax.chat import ChatFormat
from comem_jax.compiled import keep_compiled_programs
from comem_jax.models import Qwen3, Qwen3Config, load, save
from serving.running import RunningServer, start_server

WINDOW = 250
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- for tool in tools %}
{{- tool | tojson + '\\n' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TEXT = ["the quick brown fox jumps over the lazy dog", "naïve café — 東京 is the capital of 日本, said the fox"] * 4


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    keep_compiled_programs()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken(token, special=False) for token in ("<tool_call>", "</tool_call>")])
    return tokenizer


@pytest.fixture(scope="session")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        max_position_embeddings=WINDOW,
        eos_token_id=(tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")),
    )
    model = Qwen3(config, rngs=nnx.Rngs(1))
    # Larger weights than at the start of a training: the next token then depends on the whole prompt.
    nnx.update(
        model, jax.tree.map(lambda x: x * 12 if x.ndim > 2 or x.shape[0] > 2 else x, nnx.state(model, nnx.Param))
    )
    save(model, path)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return path


@pytest.fixture(scope="session")
def chat_format(folder: Path) -> ChatFormat:
    return ChatFormat.load(folder)


@pytest.fixture(scope="session")
def model(folder: Path) -> Qwen3:
    return load(folder)


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[RunningServer]:
    with start_server(folder, slots=4) as server:
        server.service.wait_ready(timeout=200)
        yield server


@pytest.fixture(scope="session")
def jetstream_server(folder: Path) -> Iterator[RunningServer]:
    with start_server(folder, slots=4, driver="jetstream", grpc_port=0) as server:
        server.service.wait_ready(timeout=200)
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client
