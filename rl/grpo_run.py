"""A GRPO run: rollouts, scores and optimiser steps, from a configuration to trained weights."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.progress import Progress, TaskID

from comem_jax.chat import ChatFormat
from comem_jax.checkpoints import Checkpointer, describe
from comem_jax.compiled import keep_compiled_programs
from comem_jax.models.sharding import make_mesh
from rl.advantages import advantages
from rl.consistency import score_trunk
from rl.curves import draw_grpo
from rl.groups import Asked, Grown, Row, ask
from rl.grpo import Batch
from rl.grpo_config import GRPOConfig
from rl.journal import Journal, read_metrics, shown, start_folder
from rl.learner import Learner
from rl.optimizer import State
from rl.pipeline import Experience, pipeline
from rl.prompts import Trunk, prompt_batches
from rl.scoring import Scorer, make_reward
from rl.staleness import make_staleness
from rl.tree import Layout

HELD_OUT_SEED = 0  # held-out rows and their lags are the same in every run


class Scored(NamedTuple):
    """A trunk and the rewards [rows, size] of its responses; NaN where one could not be scored."""

    trunk: Grown
    rewards: np.ndarray


class GRPORun:
    """One run: what it reads, the learner, and what it writes down. The state is passed in and out."""

    def __init__(self, config: GRPOConfig) -> None:
        self.config = config
        self.chat = ChatFormat.load(config.init)
        self.staleness = make_staleness(config.staleness)
        self.mesh = make_mesh(**(config.mesh or {"data": 1}))
        self.learner = Learner(config, self.chat, self.mesh)
        training, held_out = config.data.load()
        self.prompts = prompt_batches(training, config.prompts, config.cuts, config.seed)
        trunks = prompt_batches(held_out, config.eval_rows, config.cuts, HELD_OUT_SEED).at(0)
        self.held_out = [self.ask(trunk, HELD_OUT_SEED) for trunk in trunks]

    def ask(self, trunk: Trunk, *seed: int) -> Asked:
        """Return the memory prompts of a trunk's rows, the lag of each drawn by its number and `seed`."""
        rows = []
        for prefix in trunk.rows:
            rng = np.random.default_rng((*seed, prefix.row))
            rows.append(Row.late(prefix, self.staleness.draw(rng, len(prefix.read))))
        return ask(self.chat, rows, self.config.prompt_tokens)

    def rollout(self, state: State, index: int) -> Iterator[Grown]:
        """Yield the trunks of batch `index` with their groups, a part of them as it is sampled."""
        config = self.config
        asked = [self.ask(trunk, config.seed, index) for trunk in self.prompts.at(index)]
        size = len(asked) // config.rollout_parts
        for start in range(0, len(asked), size):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), index), start)
            yield from self._sampled(state, asked[start : start + size], key, config.group, config.temperature)

    def greedy(self, state: State) -> list[Grown]:
        """Return the held-out rows with one greedy summary each."""
        return list(self._sampled(state, self.held_out, jax.random.key(0), 1, 0.0))

    def _sampled(self, state: State, asked: Sequence[Asked], key: Any, group: int, temperature: float) -> list[Grown]:
        with jax.set_mesh(self.mesh):  # a thread's own setting
            return self.learner.rollout(state.params, asked, key, group=group, temperature=temperature)

    def train(self, state: State, scored: Sequence[Scored]) -> tuple[State, dict[str, float]]:
        """Return the state after the optimiser steps of one batch, and its metrics."""
        size = len(scored) // self.config.updates
        with jax.set_mesh(self.mesh):
            # Before the first step, since their old log-probabilities are those of the policy as it is now.
            parts = [self._batch(state, scored[i : i + size]) for i in range(0, len(scored), size)]
            found = []
            for layout, batch in parts:
                difference = _difference(batch)
                state, metrics = self.learner.step(layout, state, batch)
                found.append({name: float(value) for name, value in metrics.items()} | difference)
        means = {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}
        return state, self._of_samples(scored) | means

    def _batch(self, state: State, scored: Sequence[Scored]) -> tuple[Layout, Batch]:
        found = advantages(np.concatenate([each.rewards for each in scored]), self.config.advantages)
        return self.learner.batch(state.params, [each.trunk for each in scored], found)

    def _of_samples(self, scored: Sequence[Scored]) -> dict[str, float]:
        rewards = np.concatenate([each.rewards for each in scored])
        groups = [group for each in scored for group in each.trunk.groups]
        responses = [response for group in groups for response in group.responses]
        ended = [response[-1] in self.chat.eos_ids for response in responses]
        return {
            "reward": float(np.nanmean(rewards)),
            "masked": int(np.isnan(rewards).sum()),
            "zero_variance": advantages(rewards, self.config.advantages).zero_variance,
            "response_tokens": float(np.mean([len(response) for response in responses])),
            "cut_off": 1.0 - float(np.mean(ended)),
            "shortened_prompts": sum(each.trunk.asked.shortened for each in scored),
        }


def train(config: GRPOConfig) -> dict[str, Any]:
    """Run the configured GRPO and return the last metrics; go on from the last checkpoint; leave a finished run alone.

    Writes into `config.out`: `config.yaml`, `metrics.jsonl`, `tensorboard/`, `results.json`, `curves.png`,
    `checkpoints/` (Orbax) and `model/`, a Hugging Face folder of the newest weights.
    """
    start_folder(config.out, config)
    results = config.out / "results.json"  # written last, so a run that has it is over
    if results.is_file():
        return json.loads(results.read_text())
    keep_compiled_programs()
    run = GRPORun(config)
    with Checkpointer(config.out / "checkpoints") as checkpoints:
        state = _restored(run, checkpoints)
        run.learner.export(state.params)
        describe(config.out / "checkpoints", config.out / "model")
        with Journal(config.out, int(state.step) // config.updates, config) as journal, Progress() as progress:
            metrics = asyncio.run(_Training(run, checkpoints, journal, progress).run(state))
    draw_grpo({config.out.name: read_metrics(config.out)}, config.out / "curves.png")
    results.write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def _restored(run: GRPORun, checkpoints: Checkpointer) -> State:
    state = run.learner.initial_state()
    found = checkpoints.restore(state._asdict())
    if found is None:
        return state
    _, saved, data = found
    run.prompts.set_state((data or {})["prompts"])  # refuses other rows
    return State(**saved)


def _difference(batch: Batch) -> dict[str, float]:
    """Return by how much the trainer's log-probabilities of the sampled tokens differ from the sampler's."""
    difference = np.abs(np.asarray(batch.old) - np.asarray(batch.sampled))[np.asarray(batch.tree.mask) > 0]
    if not difference.size:
        return {"logprob_difference": 0.0, "logprob_difference_max": 0.0}
    return {"logprob_difference": float(difference.mean()), "logprob_difference_max": float(difference.max())}


class _Training:
    """The three parts of a run's pipeline, and what is written down between them."""

    def __init__(self, run: GRPORun, checkpoints: Checkpointer, journal: Journal, progress: Progress) -> None:
        self.grpo, self.checkpoints, self.journal, self.progress = run, checkpoints, journal, progress
        self.metrics: dict[str, float] = {}
        self.bar: TaskID = progress.add_task("grpo", total=run.config.steps)
        self.began = time.monotonic()

    async def run(self, state: State) -> dict[str, float]:
        """Train to the end and return the last metrics."""
        config = self.grpo.config
        start = int(state.step) // config.updates
        batches = range(start, config.steps)
        async with Scorer(config.scorer, make_reward(config.reward, config.domain)) as self.scorer:
            self.loop = asyncio.get_running_loop()
            if not start:
                self._write(0, await asyncio.to_thread(self._held_out, state))
            await pipeline(
                state, batches, self.grpo.rollout, self._score, self._train, max_lag=config.max_lag, start=start
            )
        return {"step": config.steps} | self.metrics

    async def _score(self, trunk: Grown) -> Scored:
        return Scored(trunk, await score_trunk(self.scorer, self.grpo.chat, trunk))

    def _train(self, state: State, experience: Experience[int, Scored]) -> State:
        config, step = self.grpo.config, experience.index + 1
        state, metrics = self.grpo.train(state, experience.scored)
        metrics |= {"lag": experience.lag, "seconds": time.monotonic() - self.began}
        last = step == config.steps
        if last or step % config.eval_every == 0:
            metrics |= self._held_out(state)
        self._write(step, metrics)
        if last or step % config.save_every == 0:
            self.checkpoints.save(step, state._asdict(), {"prompts": self.grpo.prompts.get_state()})
            self.grpo.learner.export(state.params)
        return state

    def _held_out(self, state: State) -> dict[str, float]:
        trunks = self.grpo.greedy(state)
        scored = [asyncio.run_coroutine_threadsafe(self._score(trunk), self.loop) for trunk in trunks]
        return {"held_out_reward": float(np.nanmean(np.concatenate([each.result().rewards for each in scored])))}

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        self.metrics = metrics
        self.journal.write(step, metrics)
        self.progress.update(self.bar, completed=step)
        self.progress.console.print(shown(step, metrics), highlight=False)
