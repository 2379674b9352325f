"""A tiny model that has learnt one answer by heart, so that a real server writes tool calls."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from comem_jax.chat import ChatFormat, copy_tokenizer
from comem_jax.models import Qwen3, Qwen3Config, save

USER = [{"role": "user", "content": "the fox"}]
TOOL = {"type": "function", "function": {"name": "view"}}
ANSWER = (
    "<think>hm</think>So.\n"
    '<tool_call>{"name": "view", "arguments": {"p": "a\\"b", "n": [1, 2]}}</tool_call>'
    '<tool_call>{"name": "ls", "arguments": {"d": "e/f"}}</tool_call><|im_end|>'
)
CALLS = [("view", {"p": 'a"b', "n": [1, 2]}), ("ls", {"d": "e/f"})]
STEPS = 120


def make_learnt(source: Path, target: Path) -> None:
    """Write a model folder, with the tokenizer of another, that answers `USER` with tool `TOOL` by `ANSWER`."""
    chat = ChatFormat.load(source)
    config = Qwen3Config.from_folder(source)
    model = Qwen3(config, rngs=nnx.Rngs(0))
    save(_taught(model, chat.prompt(USER, [TOOL]), chat.encode(ANSWER)), target)
    copy_tokenizer(source, target)


def _taught(model: Qwen3, prompt: list[int], answer: list[int]) -> Qwen3:
    tokens = jnp.asarray([prompt + answer], jnp.int32)
    learnt = np.arange(tokens.shape[1] - 1) >= len(prompt) - 1
    graph, weights = nnx.split(model)
    optimizer = optax.adam(1e-2)

    def loss(weights: nnx.State) -> jax.Array:
        logits = nnx.merge(graph, weights)(tokens)[0, :-1]
        return (optax.softmax_cross_entropy_with_integer_labels(logits, tokens[0, 1:]) * learnt).sum()

    def step(carry: tuple, _: None) -> tuple:
        weights, state = carry
        value, gradient = jax.value_and_grad(loss)(weights)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(weights, updates), state), value

    def teach(weights: nnx.State) -> tuple[nnx.State, jax.Array]:
        (weights, _), values = jax.lax.scan(step, (weights, optimizer.init(weights)), length=STEPS)
        return weights, values[-1]

    weights, left = jax.jit(teach)(weights)
    assert left < 0.5, "the answer was not learnt"
    return nnx.merge(graph, weights)
