"""One GRPO step on a tiny model, for tests on one device and on many."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from comem_jax.models import Qwen3, Qwen3Config
from rl.grpo import Batch, Objective, train_step
from rl.objective import ObjectiveConfig, Tokens, objective, token_weights
from rl.optimizer import State
from rl.tree import Cut, Layout, Tree, lay_out

CONFIG = Qwen3Config(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=16,
    num_key_value_heads=8, head_dim=4, rms_norm_eps=1e-6, rope_theta=1e4, tie_word_embeddings=True,
    max_position_embeddings=256,
)  # fmt: skip
GRAPHDEF, PARAMS = nnx.split(Qwen3(CONFIG, rngs=nnx.Rngs(0)))
RATE = 1e4  # so large that a parameter after a step is all but its gradient, in every digit
OPTIMIZER = optax.sgd(RATE)
TEMPERATURE, LONGEST = 0.8, 32


def make_trees() -> list[Tree]:
    rng = np.random.default_rng(0)

    def tokens(size: int) -> list[int]:
        return rng.integers(0, 64, size).tolist()

    def cut(at: int) -> Cut:
        return Cut(at, tokens(3), [tokens(int(size)) for size in rng.integers(2, 9, 3)])

    return [Tree(tokens(20), [cut(9), cut(20)]) for _ in range(8)]


TREES = make_trees()
LAYOUT = Layout.fit(TREES, multiple=8, slot_multiple=8)


def make_batch() -> Batch:
    tree = lay_out(TREES, LAYOUT)
    rng, shape = np.random.default_rng(1), tree.mask.shape
    advantages = np.broadcast_to(rng.normal(size=shape[:2])[..., None], shape).astype(np.float32)
    old, sampled, reference = (np.float32(-4.2 + rng.normal(0, 0.2, shape)) for _ in range(3))
    return jax.tree.map(jnp.asarray, Batch(tree, advantages, old, sampled, reference))


def make_state() -> State:
    return State(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, PARAMS), OPTIMIZER.init(PARAMS))


def make_step(micro_batches: int = 1, **settings: Any) -> Any:
    static = Objective(GRAPHDEF, OPTIMIZER, ObjectiveConfig(**settings), TEMPERATURE, micro_batches)
    return functools.partial(train_step, static, LAYOUT)


def separate_loss(params: Any, batch: Batch, settings: ObjectiveConfig) -> jax.Array:
    """The same objective with every prompt and response as a sequence of its own."""
    rows = [
        (b, r, [*tree.trunk[: cut.at], *cut.closing], list(response))
        for b, tree in enumerate(TREES)
        for r, (cut, response) in enumerate((cut, response) for cut in tree.cuts for response in cut.responses)
    ]
    tokens = np.zeros((len(rows), LONGEST + LAYOUT.response), np.int32)
    places = np.zeros((len(rows), LAYOUT.response), np.int32)
    for number, (_, _, prompt, response) in enumerate(rows):
        tokens[number, : len(prompt) + len(response)] = prompt + response
        places[number] = len(prompt) - 1 + np.arange(LAYOUT.response)
    logits = nnx.merge(GRAPHDEF, params)(tokens) / TEMPERATURE
    normal = jax.nn.log_softmax(jnp.take_along_axis(logits, places[..., None], axis=1))
    at = np.array([row[:2] for row in rows]).T
    targets = batch.tree.targets[tuple(at)]
    logprobs = jnp.take_along_axis(normal, targets[..., None], axis=-1)[..., 0]
    weights = token_weights(batch.tree.mask, settings.aggregation)
    known = Tokens(*(x[tuple(at)] for x in (weights, *batch[1:])))
    return objective(logprobs, -(jnp.exp(normal) * normal).sum(axis=-1), known, settings)[0]


def gradient_of(state: State) -> Any:
    return jax.tree.map(lambda after, before: (np.asarray(before) - np.asarray(after)) / RATE, state.params, PARAMS)


def assert_close(found: Any, expected: Any) -> None:
    """Every number differs by at most 1e-5 of its array's largest (that of all arrays for one that is all but zero)."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    floor = 1e-3 * max(float(np.abs(np.asarray(expected)).max()) for _, expected in pairs)
    for one, other in pairs:
        one, other = np.asarray(one), np.asarray(other)
        assert np.abs(one - other).max() <= 1e-5 * max(float(np.abs(other).max()), floor)
