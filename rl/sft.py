"""Supervised fine-tuning: a pure train step, and a short loop around it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from pydantic import Field
from rich.progress import Progress

from comem_jax.chat import ChatFormat, copy_tokenizer
from comem_jax.checkpoints import Checkpointer
from comem_jax.config import Config
from comem_jax.errors import UserError
from comem_jax.models import Qwen3, Qwen3Config, load, save
from comem_jax.models.sharding import make_mesh, shardings
from rl.data import batches
from rl.losses import cross_entropy
from rl.rows import PocketRows

Batch = dict[str, jax.Array]


class ModelConfig(Config):
    """A new model's sizes; the vocabulary is the tokenizer's."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int


class DataConfig(Config):
    """Which rows are trained on, and how they are packed."""

    rows: PocketRows
    mix: dict[str, float]
    length: int = Field(gt=0)
    batch: int = Field(gt=0)


class OptimizerConfig(Config):
    """AdamW with a linear warm-up and a cosine decay to zero.

    With a `matrix_learning_rate` the layers' matrices, head by head, are updated by Muon at that rate instead: it makes a
    small model learn to look things up in about half the tokens.
    """

    learning_rate: float = Field(gt=0)
    matrix_learning_rate: float | None = Field(default=None, gt=0)
    warmup: int = Field(default=0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0


class SFTConfig(Config):
    """One SFT run. `init` is a model folder to start from, or the sizes of a new model with a `tokenizer` folder."""

    init: Path | ModelConfig
    tokenizer: Path
    data: DataConfig
    optimizer: OptimizerConfig
    steps: int = Field(gt=0)
    out: Path
    seed: int = 0
    mesh: dict[str, int] = {}
    eval_every: int = Field(default=100, gt=0)
    save_every: int = Field(default=200, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"


class State(NamedTuple):
    """All that a train step changes."""

    step: jax.Array
    params: Any
    opt_state: Any


TrainStep = Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Return the clipped optimiser, its learning rates warming up and then falling to zero at `steps`."""

    def schedule(peak: float) -> optax.Schedule:
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
    """Name the input and output axis of every layer matrix; layers and heads are matrices of their own."""

    def matrix(axes: tuple[str, ...]) -> optax.contrib.MuonDimensionNumbers | None:
        inner = [i for i, axis in enumerate(axes) if axis not in ("layers", "heads", "kv_heads")]
        if axes[0] != "layers" or len(inner) < 2:
            return None
        return optax.contrib.MuonDimensionNumbers((inner[0],), (inner[1],))

    return _by_axes(params, matrix)


def _by_axes(params: Any, rule: Callable[[tuple[str, ...]], Any]) -> Any:
    """Return a tree like `params` with what `rule` says of each parameter's logical axes."""
    return jax.tree.map(
        lambda p: p.replace(rule(p.get_metadata("axes"))), params, is_leaf=lambda p: isinstance(p, nnx.Variable)
    )


def loss_fn(graphdef: Any, params: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the cross-entropy on the batch's weighted targets, and its metrics."""
    model = nnx.merge(graphdef, params)
    logits = model(batch["tokens"], positions=batch["positions"], segment_ids=batch["segments"])
    return cross_entropy(logits, batch["targets"], batch["weights"])


def train_step(graphdef: Any, optimizer: optax.GradientTransformation, state: State, batch: Batch) -> tuple[State, Any]:
    """Return the state after one optimiser step on a batch, and the metrics before it. Pure."""
    gradient = jax.value_and_grad(lambda params: loss_fn(graphdef, params, batch), has_aux=True)
    (_, metrics), gradients = gradient(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["gradient_norm"] = optax.global_norm(gradients)
    return State(state.step + 1, params, opt_state), metrics


def train(config: SFTConfig) -> dict[str, Any]:
    """Run the configured SFT, resuming from its last checkpoint, and return the last metrics.

    Writes into `config.out`: `config.yaml`, `metrics.jsonl`, `results.json`, `checkpoints/` (Orbax) and `model/`, a
    Hugging Face folder of the newest weights.
    """
    _start_folder(config)
    mesh = make_mesh(**config.mesh) if config.mesh else make_mesh(data=1)
    model = _initial_model(config)
    train_rows, eval_rows = config.data.rows.prepare(config.tokenizer)
    graphdef, params = nnx.split(model)
    optimizer = make_optimizer(config.optimizer, config.steps)
    with jax.set_mesh(mesh):
        state = _place(State(jnp.zeros((), jnp.int32), params, optimizer.init(params)), mesh)
        step = jax.jit(lambda state, batch: train_step(graphdef, optimizer, state, batch), donate_argnums=0)
        scores = jax.jit(lambda params, batch: loss_fn(graphdef, params, batch)[1])
        data = iter(batches(train_rows, config.data.mix, config.data.length, config.data.batch, config.seed))
        held_out = _held_out(eval_rows, config.data)
        checkpoints = Checkpointer(config.out / "checkpoints")
        try:
            state = _restore(checkpoints, state, data)
            return _loop(config, model, state, step, scores, data, held_out, checkpoints)
        finally:
            checkpoints.close()


def _loop(
    config: SFTConfig, model: Qwen3, state: State, step: TrainStep, scores: Any, data: Any, held_out: Any, checkpoints: Any
) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    with Progress() as progress, (config.out / "metrics.jsonl").open("a") as log:
        bar = progress.add_task("sft", total=config.steps, completed=int(state.step))
        began = time.monotonic()
        for index in range(int(state.step) + 1, config.steps + 1):
            state, metrics = step(state, next(data))
            last = index == config.steps
            if last or index % config.eval_every == 0:
                metrics = {"step": index, "seconds": time.monotonic() - began} | _floats(metrics)
                for kind, batch in held_out.items():
                    scored = _floats(scores(state.params, batch))
                    metrics |= {f"{kind}_{name}": value for name, value in scored.items()}
                log.write(json.dumps(metrics) + "\n")
                log.flush()
                progress.console.print(_line(metrics), highlight=False)
            if last or index % config.save_every == 0:
                checkpoints.save(index, state._asdict(), data.get_state())
                _export(model, state.params, config)
            progress.update(bar, advance=1)
    (config.out / "results.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def _start_folder(config: SFTConfig) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    written = config.out / "config.yaml"
    begun = (config.out / "metrics.jsonl").is_file()
    if begun and written.read_text() != config.to_yaml():
        raise UserError(f"{config.out} holds a run of another configuration; choose another out folder or remove it")
    written.write_text(config.to_yaml())


def _initial_model(config: SFTConfig) -> Qwen3:
    dtype = jnp.dtype(config.dtype)
    if isinstance(config.init, Path):
        return load(config.init, dtype=dtype)
    vocabulary = -(-ChatFormat.load(config.tokenizer).vocabulary_size // 64) * 64  # meshes and matrix units like it
    sizes = Qwen3Config(vocab_size=vocabulary, tie_word_embeddings=True, **config.init.model_dump())
    return Qwen3(sizes, rngs=nnx.Rngs(config.seed), dtype=dtype)


def _place(state: State, mesh: Mesh) -> State:
    return jax.tree.map(jax.device_put, state, shardings(state, mesh))


def _restore(checkpoints: Checkpointer, state: State, data: Any) -> State:
    found = checkpoints.restore(state._asdict())
    if found is None:
        return state
    _, restored, data_state = found
    data.set_state(data_state)
    return State(**restored)


def _held_out(rows: Mapping[str, Any], config: DataConfig) -> dict[str, Batch]:
    """One batch of each kind that the training draws on."""
    return {kind: next(iter(batches(rows, {kind: 1.0}, config.length, config.batch, 0))) for kind in config.mix}


def _export(model: Qwen3, params: Any, config: SFTConfig) -> None:
    """Write the newest weights, with the tokenizer, as a Hugging Face folder."""
    nnx.update(model, params)
    save(model, config.out / "model", dtype=jnp.dtype(config.save_dtype))
    copy_tokenizer(config.tokenizer, config.out / "model")


def _floats(metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _line(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
