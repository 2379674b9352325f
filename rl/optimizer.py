"""The optimiser of a training run, and the state that its steps change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import optax
from flax import nnx
from pydantic import Field

from comem_jax.config import Config


class OptimizerConfig(Config):
    """AdamW with a linear warm-up, and then a cosine decay to zero or a constant rate.

    With a `matrix_learning_rate` the layers' matrices, head by head, are updated by Muon at that rate instead: a small
    model learns to look things up in fewer tokens that way.
    """

    learning_rate: float = Field(gt=0)
    matrix_learning_rate: float | None = Field(default=None, gt=0)
    decay: Literal["cosine", "constant"] = "cosine"
    warmup: int = Field(default=0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0


class State(NamedTuple):
    """All that a train step changes."""

    step: jax.Array
    params: Any
    opt_state: Any


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Return the clipped optimiser, its learning rates warming up and then, by a cosine, falling to zero at `steps`."""

    def schedule(peak: float) -> optax.Schedule:
        if config.decay == "constant":
            return optax.schedules.warmup_constant_schedule(0.0 if config.warmup else peak, peak, config.warmup)
        return optax.warmup_cosine_decay_schedule(0.0, peak, config.warmup, max(steps, config.warmup + 1))

    b1, b2 = config.betas
    rate, decay = schedule(config.learning_rate), config.weight_decay
    if config.matrix_learning_rate is None:
        update = optax.adamw(rate, b1, b2, weight_decay=decay, mask=_matrices)
    else:
        update = optax.contrib.muon(
            schedule(config.matrix_learning_rate),
            weight_decay=decay,
            adam_b1=b1,
            adam_b2=b2,
            adam_learning_rate=rate,
            muon_weight_dimension_numbers=_muon_axes,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip), update)


def _matrices(params: Any) -> Any:
    """Mark the parameters that decay: all but the norms' scales."""
    return _by_axes(params, lambda axes: len(set(axes) - {"layers"}) > 1)


def _muon_axes(params: Any) -> Any:
    """Name the input and output axis of every layer matrix; layers, experts and heads are matrices of their own."""

    def matrix(axes: tuple[str, ...]) -> optax.contrib.MuonDimensionNumbers | None:
        inner = [i for i, axis in enumerate(axes) if axis not in ("layers", "experts", "heads", "kv_heads")]
        if axes[0] != "layers" or len(inner) < 2:
            return None
        return optax.contrib.MuonDimensionNumbers((inner[0],), (inner[1],))

    return _by_axes(params, matrix)


def _by_axes(params: Any, rule: Callable[[tuple[str, ...]], Any]) -> Any:
    """Return a tree like `params` with what `rule` says of each parameter's logical axes."""
    return jax.tree.map(
        lambda p: p.replace(rule(p.get_metadata("axes"))), params, is_leaf=lambda p: isinstance(p, nnx.Variable)
    )
