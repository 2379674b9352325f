"""What the shared trunk saves: one gradient over a tree against the same responses as separate sequences.

Both sides use the same model, the same attention and the same response-only head, and are timed in turns in one run,
each with the rematerialisation that is fastest for it: a long sequence's MLP a few tokens at a time, a short one's as a
whole. The separate side is each sequence by itself, without padding, its gradient added to the sum of those before;
batches of two and of four such sequences took the same or more processor time. Where `google-tunix` is installed, its
GRPO is timed once on the same rows.
"""

from __future__ import annotations

import functools
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field, model_validator

from comem_jax.config import Config, parse_config
from comem_jax.errors import UserError, nearest
from comem_jax.models import Qwen3, Qwen3Config, load
from comem_jax.models.remat import Remat
from rl.peer import Row, has_tunix, tunix_gradient
from rl.tree import Cut, Layout, Tree, TreeBatch, lay_out, response_logprobs

# Small enough for a CPU; attention weighs against the products with weights as in Qwen3-4B, the memory model.
TINY = Qwen3Config(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=4096,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    tie_word_embeddings=True,
    max_position_embeddings=131072,
)
SEED = 0
REMAT: dict[str, Remat] = {"shared": "mlp", "separate": "none"}

Gradient = tuple[jax.Array, Any]


class Shape(Config):
    """What is trained on: `group` responses of `response` tokens behind one `prompt`, or behind each cut of a `trunk`.

    A trunk has `cuts` cuts at even distances, the last at its end, each followed by a closing of `closing` tokens.
    """

    prompt: int | None = Field(None, gt=0)
    trunk: int | None = Field(None, gt=0)
    cuts: int = Field(1, gt=0)
    closing: int = Field(0, ge=0)
    response: int = Field(gt=0)
    group: int = Field(gt=0)

    @model_validator(mode="after")
    def _one_history(self) -> Self:
        if (self.prompt is None) == (self.trunk is None):
            raise UserError("a shape takes either prompt=TOKENS or trunk=TOKENS")
        if self.cuts > self.tokens:
            raise UserError(f"{self.tokens} tokens cannot be cut {self.cuts} times")
        return self

    @property
    def tokens(self) -> int:
        """The history's length."""
        return self.prompt or self.trunk or 0

    @property
    def ends(self) -> list[int]:
        """Where the cuts are."""
        return [self.tokens * (i + 1) // self.cuts for i in range(self.cuts)]


def parse_shape(text: str) -> Shape:
    """Read `prompt=4096,response=256,group=16`; raises `UserError` for what is not a shape."""
    values: dict[str, Any] = {}
    for word in text.split(","):
        key, separator, value = word.partition("=")
        if not separator or not key.strip():
            raise UserError(f"--shape: {word!r} is not key=value")
        if key.strip() not in Shape.model_fields:
            raise UserError(f"--shape: unknown key {key.strip()!r}{nearest(key.strip(), Shape.model_fields)}")
        values[key.strip()] = value.strip()
    return parse_config(Shape, values, "--shape")


class Part(NamedTuple):
    """One sequence and its static layout, with the weights `[1, responses, response]` of its log-probabilities."""

    layout: Layout
    batch: TreeBatch
    weights: np.ndarray


@dataclass(frozen=True)
class Problem:
    """One random tree, and a weight for every response token, as advantages would be."""

    tree: Tree
    weights: np.ndarray

    @classmethod
    def make(cls, shape: Shape, vocabulary: int) -> Self:
        """Draw the tokens and weights `[cuts * group, response]`."""
        rng = np.random.default_rng(SEED)

        def draw(*size: int) -> Any:
            return rng.integers(0, vocabulary, size).tolist()

        cuts = [Cut(end, draw(shape.closing), draw(shape.group, shape.response)) for end in shape.ends]
        weights = rng.normal(size=(shape.cuts * shape.group, shape.response)) / (shape.cuts * shape.group)
        return cls(Tree(draw(shape.tokens), cuts), weights.astype(np.float32))

    def shared(self) -> list[Part]:
        """Return all of it as one sequence."""
        return [_one(self.tree, self.weights)]

    def separate(self) -> list[Part]:
        """Return every response as a sequence of its own, behind its whole prompt."""
        alone = [
            Tree(self.tree.trunk, [Cut(cut.at, cut.closing, [response])])
            for cut in self.tree.cuts
            for response in cut.responses
        ]
        return [_one(tree, self.weights[i : i + 1]) for i, tree in enumerate(alone)]

    def rows(self) -> list[Row]:
        """Return every `(prompt, response, weights)`."""
        pairs = [
            ([*self.tree.trunk[: cut.at], *cut.closing], response)
            for cut in self.tree.cuts
            for response in cut.responses
        ]
        return [(*pair, weights) for pair, weights in zip(pairs, self.weights, strict=True)]


def _one(tree: Tree, weights: np.ndarray) -> Part:
    layout = Layout.fit([tree], multiple=1, slot_multiple=1)
    return Part(layout, lay_out([tree], layout), weights[None])


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _add_gradient(graphdef: Any, layout: Layout, params: Any, inputs: Any, total: Gradient) -> Gradient:
    """Add a sequence's loss (the weighted sum of its log-probabilities) and its gradient to `total`."""
    batch, weights = inputs

    def loss(params: Any) -> jax.Array:
        return jnp.sum(weights * response_logprobs(nnx.merge(graphdef, params), batch, layout)[0])

    return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(params))


def _gradient(model: Qwen3, remat: Remat, parts: list[Part]) -> Gradient:
    model.remat = remat
    graphdef, params = nnx.split(model)
    total = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    for part in parts:
        total = _add_gradient(graphdef, part.layout, params, part[1:], total)
    return jax.block_until_ready(total)


def bench_train(shape: Shape, model_folder: Path | None = None, repeats: int = 3) -> dict[str, Any]:
    """Time the gradient of both sides `repeats` times in turns, after one run of each that compiles, and compare them.

    Returns the figures, times in seconds, as `docs/measured/train.json` has them. `predicted_speedup` is the ratio of
    the floating-point operations that the tokens and the attended pairs of both sides need; `load_before` is the
    machine's load average at the start, above 0 where other work shares it.
    """
    load_before = os.getloadavg()[0]
    model = load(model_folder) if model_folder else Qwen3(TINY, rngs=nnx.Rngs(SEED))
    problem = Problem.make(shape, model.config.vocab_size)
    sides = {"shared": problem.shared(), "separate": problem.separate()}
    runs = {name: functools.partial(_gradient, model, REMAT[name], parts) for name, parts in sides.items()}
    gradients = {name: run() for name, run in runs.items()}
    seconds = _in_turns(runs, repeats)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "shape": shape.model_dump(exclude_none=True),
        **{f"{name}_seconds": value for name, value in medians.items()},
        "speedup": medians["separate"] / medians["shared"],
        **_predicted(model.config, sides),
        "max_relative_gradient_difference": _difference(gradients["shared"][1], gradients["separate"][1]),
        "tunix": _tunix(model, problem, gradients["shared"][1]),
        "seconds": seconds,
        "measured": _circumstances(model.config, repeats) | {"load_before": load_before},
    }


def _in_turns(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(_timed(run)[0])
    return seconds


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def _tunix(model: Qwen3, problem: Problem, shared: Any) -> dict[str, Any] | str:
    if not has_tunix():
        return "skipped: google-tunix is not installed"
    gradient, rows = tunix_gradient(model), problem.rows()
    gradient(list({len(row[0]): row for row in rows}.values()))  # compiles every length
    seconds, found = _timed(lambda: gradient(rows))
    difference = _difference(shared["embedding"], found)
    return {
        "version": version("google-tunix"),
        "seconds": seconds,
        "relative_embedding_gradient_difference": difference,
    }


def _difference(found: Any, expected: Any) -> float:
    """The largest difference of any gradient, relative to the largest entry of its array."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)


def _predicted(config: Qwen3Config, sides: dict[str, list[Part]]) -> dict[str, Any]:
    tokens = {name: sum(part.batch.tokens.size for part in parts) for name, parts in sides.items()}
    pairs = {name: sum(_pairs(part.batch) for part in parts) for name, parts in sides.items()}
    scored = sum(part.batch.mask.size for part in sides["shared"])  # the same on both sides
    work = {name: _operations(config, tokens[name], pairs[name], scored) for name in sides}
    return {"tokens": tokens, "attended_pairs": pairs, "predicted_speedup": work["separate"] / work["shared"]}


def _pairs(batch: TreeBatch) -> int:
    return int(np.maximum(batch.spans[..., 1] - batch.spans[..., 0], 0).sum(dtype=np.int64))


def _operations(config: Qwen3Config, tokens: int, pairs: int, scored: int) -> float:
    """Count the floating-point operations of one gradient: products with weights, attention, and the head.

    A product costs 2 operations a weight forward and 4 backward. A pair costs two products forward and five backward,
    and the head's forward product is made twice.
    """
    heads, width = config.num_attention_heads * config.head_dim, config.hidden_size
    attention = 2 * width * (heads + config.num_key_value_heads * config.head_dim)
    layer = 6 * tokens * (attention + 3 * width * config.intermediate_size) + 14 * pairs * heads
    return float(config.num_hidden_layers * layer + 8 * scored * width * config.vocab_size)


def _circumstances(config: Qwen3Config, repeats: int) -> dict[str, Any]:
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "repeats": repeats,
        "model": {name: getattr(config, name) for name in (*sizes, "head_dim", "vocab_size")},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("jax", "flax")},
    }
