"""Supervised fine-tuning: a pure train step, and a short loop around it."""

from __future__ import annotations

import functools
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
from comem_jax.checkpoints import Checkpointer, describe
from comem_jax.compiled import keep_compiled_programs
from comem_jax.config import Config
from comem_jax.models import Qwen3, Qwen3Config, load, save
from comem_jax.models.sharding import make_mesh, shardings
from rl.curves import draw_losses
from rl.data import Stores, batches, count_long
from rl.init import make_mimetic
from rl.journal import Journal, read_metrics, shown, start_folder
from rl.losses import cross_entropy
from rl.optimizer import OptimizerConfig, State, make_optimizer
from rl.rows import RowSource
from rl.shorten import LEFT_OUT
from rl.trunks import trunk_batches

Batch = dict[str, jax.Array]


class ModelConfig(Config):
    """A new model's sizes; the vocabulary is the tokenizer's. `mimetic` starts attention as `rl.init` says."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int
    mimetic: bool = False


class DataConfig(Config):
    """Which rows are trained on, and how they are packed.

    A row that is longer than `length` is shortened in the middle of its prompt, never in its targets, or refused. With
    `cuts` above 1, up to so many neighbouring rows that begin alike, as those of one trajectory do, share a trunk: what
    they share is computed once, at the same loss. A `length` that holds a few rows then saves most.
    """

    rows: RowSource
    mix: dict[str, float]
    length: int = Field(gt=0)
    batch: int = Field(gt=0)
    cuts: int = Field(default=1, gt=0)
    long_rows: Literal["shorten", "refuse"] = "shorten"


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


class Data(NamedTuple):
    """What a run reads: endless batches, one held-out batch of each kind, and how many rows are shortened."""

    rows: Any
    held_out: dict[str, Batch]
    shortened: int


TrainStep = Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]


def loss_fn(graphdef: Any, params: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the cross-entropy on the batch's weighted targets, and its metrics."""
    model = nnx.merge(graphdef, params)
    seen = {"spans": batch["spans"]} if "spans" in batch else {"segment_ids": batch["segments"]}
    hidden = model.hidden(batch["tokens"], positions=batch["positions"], **seen)
    return cross_entropy(model.head, hidden, batch["targets"], batch["weights"])


def train_step(graphdef: Any, optimizer: optax.GradientTransformation, state: State, batch: Batch) -> tuple[State, Any]:
    """Return the state after one optimiser step on a batch, and the metrics before it. Pure."""
    gradient = jax.value_and_grad(lambda params: loss_fn(graphdef, params, batch), has_aux=True)
    (_, metrics), gradients = gradient(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["gradient_norm"] = optax.global_norm(gradients)
    return State(state.step + 1, params, opt_state), metrics


class Trainer:
    """The model, the optimiser and the two compiled functions of a run."""

    def __init__(self, config: SFTConfig) -> None:
        self.config = config
        self.model = _initial_model(config)
        self.graphdef, self._params = nnx.split(self.model)
        self.optimizer = make_optimizer(config.optimizer, config.steps)
        self.step: TrainStep = jax.jit(functools.partial(train_step, self.graphdef, self.optimizer), donate_argnums=0)
        self.scores = jax.jit(lambda params, batch: loss_fn(self.graphdef, params, batch)[1])

    def initial_state(self, mesh: Mesh) -> State:
        """Return the state before the first step, laid out on the mesh."""
        state = State(jnp.zeros((), jnp.int32), self._params, self.optimizer.init(self._params))
        return jax.tree.map(jax.device_put, state, shardings(state, mesh))

    def evaluate(self, params: Any, held_out: Mapping[str, Batch]) -> dict[str, float]:
        """Return loss and accuracy on each kind of held-out rows."""
        found: dict[str, float] = {}
        for kind, batch in held_out.items():
            found |= {f"{kind}_{name}": float(value) for name, value in self.scores(params, batch).items()}
        return found

    def export(self, params: Any) -> None:
        """Write the weights, with the tokenizer, as a Hugging Face folder."""
        nnx.update(self.model, params)
        folder = self.config.out / "model"
        save(self.model, folder, dtype=jnp.dtype(self.config.save_dtype))
        copy_tokenizer(self.config.tokenizer, folder)


def train(config: SFTConfig) -> dict[str, Any]:
    """Run the configured SFT and return the last metrics; go on from the last checkpoint; leave a finished run alone.

    Writes into `config.out`: `config.yaml`, `metrics.jsonl`, `tensorboard/`, `results.json`, `loss.png`, `checkpoints/`
    (Orbax) and `model/`, a Hugging Face folder of the newest weights.
    """
    start_folder(config.out, config)
    results = config.out / "results.json"  # written last, so a run that has it is over
    if results.is_file():
        return json.loads(results.read_text())
    keep_compiled_programs()
    trainer, data = Trainer(config), load_data(config)
    mesh = make_mesh(**(config.mesh or {"data": 1}))
    with jax.set_mesh(mesh), Checkpointer(config.out / "checkpoints") as checkpoints:
        state = restore(checkpoints, trainer.initial_state(mesh), data.rows)
        trainer.export(state.params)
        describe(config.out / "checkpoints", config.out / "model")
        with Journal(config.out, int(state.step), config) as journal:
            metrics = _loop(trainer, state, data, checkpoints, journal)
    draw_losses(read_metrics(config.out), config.out / "loss.png")
    results.write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def _loop(trainer: Trainer, state: State, data: Data, checkpoints: Checkpointer, journal: Journal) -> dict[str, float]:
    config, metrics, began = trainer.config, {}, time.monotonic()
    with Progress() as progress:
        bar = progress.add_task("sft", total=config.steps, completed=int(state.step))
        for index in range(int(state.step) + 1, config.steps + 1):
            state, measured = trainer.step(state, next(data.rows))
            last = index == config.steps
            if last or index % config.eval_every == 0:
                metrics = {"seconds": time.monotonic() - began}
                metrics |= {name: float(value) for name, value in measured.items()}
                metrics |= trainer.evaluate(state.params, data.held_out)
                metrics["shortened_rows"] = data.shortened
                journal.write(index, metrics)
                progress.console.print(shown(index, metrics), highlight=False)
            if last or index % config.save_every == 0:
                checkpoints.save(index, state._asdict(), {"rows": data.rows.get_state()})
                trainer.export(state.params)
            progress.update(bar, advance=1)
    return {"step": config.steps} | metrics


def load_data(config: SFTConfig) -> Data:
    """Return what the configured run reads, from its first batch on."""
    data = config.data
    training, held_out = data.rows.prepare(config.tokenizer)
    left_out = ChatFormat.load(config.tokenizer).encode(LEFT_OUT) if data.long_rows == "shorten" else None

    def draw(stores: Stores, mix: dict[str, float], seed: int) -> Any:
        sizes = data.length, data.batch, seed
        if data.cuts == 1:
            return iter(batches(stores, mix, *sizes, left_out=left_out))
        return iter(trunk_batches(stores, mix, *sizes, cuts=data.cuts, left_out=left_out))

    rows = draw(training, data.mix, config.seed)
    one_of_each = {kind: next(draw(held_out, {kind: 1.0}, 0)) for kind in data.mix}
    return Data(rows, one_of_each, count_long(training, data.mix, data.length))


def _initial_model(config: SFTConfig) -> Qwen3:
    dtype = jnp.dtype(config.dtype)
    if isinstance(config.init, Path):
        return load(config.init, dtype=dtype)
    chat = ChatFormat.load(config.tokenizer)
    vocabulary = -(-chat.vocabulary_size // 64) * 64  # meshes and matrix units like it
    sizes = config.init.model_dump(exclude={"mimetic"})
    shape = Qwen3Config(vocab_size=vocabulary, tie_word_embeddings=True, eos_token_id=chat.eos_ids, **sizes)
    model = Qwen3(shape, rngs=nnx.Rngs(config.seed), dtype=dtype)
    if config.init.mimetic:
        make_mimetic(model, config.seed)
    return model


def restore(checkpoints: Checkpointer, state: State, rows: Any) -> State:
    """Return the newest checkpoint's state and move the rows to where they stood then; the given state if none."""
    found = checkpoints.restore(state._asdict())
    if found is None:
        return state
    _, restored, position = found
    if position is not None:
        rows.set_state(position["rows"])
    return State(**restored)
