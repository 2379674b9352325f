"""Policies over tasks against any two OpenAI endpoints, some at a time, with a results table."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from comem_jax.agent import Run, run_agent
from comem_jax.chat import ChatFormat
from comem_jax.config import Config
from comem_jax.endpoint import Endpoint
from comem_jax.errors import UserError
from comem_jax.memory.policies import CountTokens, PolicyConfig, make_policy
from comem_jax.memory.prompt import Message
from comem_jax.memory.summarizer import Summarizer
from comem_jax.memory.trace import Trace
from envs.pocket.world import generate, split_seed
from envs.repair import Instance, RepairEnvironment

LATE_STEP = 8  # from this step on a history is long enough for a bounded prompt to be shorter


class ModelAt(Config):
    """A model behind an OpenAI-compatible URL; without a name, the first one that the server lists."""

    url: str
    model: str | None = None
    max_tokens: int = Field(default=1024, gt=0)


class PocketTasks(Config):
    """Tasks of the pocket world: `count` of a split, from the task with index `first` on."""

    source: Literal["pocket"] = "pocket"
    split: Literal["train", "validation", "test"] = "test"
    first: int = Field(default=0, ge=0)
    count: int = Field(default=24, gt=0)

    def instances(self) -> list[Instance]:
        """Return the tasks."""
        return [generate(split_seed(self.split, self.first + i)).instance for i in range(self.count)]


class EvalConfig(Config):
    """One evaluation. `tokenizer` is a model folder to count prompt tokens with; without it, 4 characters are a token."""

    agent: ModelAt
    memory: ModelAt | None = None
    tokenizer: Path | None = None
    tasks: PocketTasks = PocketTasks()
    policies: dict[str, PolicyConfig]
    concurrency: int = Field(default=4, gt=0)
    max_steps: int = Field(default=40, gt=0)
    out: Path

    @model_validator(mode="after")
    def _memory_where_needed(self) -> EvalConfig:
        needing = [name for name, policy in self.policies.items() if policy.name in ("sync", "comem")]
        if needing and self.memory is None:
            raise ValueError(f"the policy {needing[0]!r} needs a memory model, and there is no 'memory'")
        return self


@dataclass(frozen=True)
class Outcome:
    """One run of one task under one policy. `error` says what ended a run that could not be finished or graded."""

    task: str
    policy: str
    resolved: bool
    run: Run
    trace: Trace
    error: str | None = None


async def evaluate(config: EvalConfig, on_outcome: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
    """Run every policy on every task, `concurrency` runs at a time, and return the outcomes.

    The policies take turns on each task, so that a drift of the machine's speed hits all of them alike. A run that fails
    is an unresolved outcome, never a missing one.
    """
    count = token_counter(config.tokenizer)
    agent = Endpoint(config.agent.url, config.agent.model)
    memory = Endpoint(config.memory.url, config.memory.model) if config.memory else None
    jobs = [(instance, name) for instance in config.tasks.instances() for name in config.policies]
    places = asyncio.Semaphore(config.concurrency)

    async def job(instance: Instance, name: str) -> Outcome:
        async with places:
            outcome = await _run_one(config, instance, name, agent, memory, count)
        on_outcome(outcome)
        return outcome

    return list(await asyncio.gather(*(job(*each) for each in jobs)))


async def _run_one(
    config: EvalConfig, instance: Instance, name: str, agent: Endpoint, memory: Endpoint | None, count: CountTokens
) -> Outcome:
    trace = Trace()
    summarizer = Summarizer(memory, config.memory.max_tokens) if memory and config.memory else None
    policy = make_policy(config.policies[name], summarizer, count, trace)
    environment = await asyncio.to_thread(RepairEnvironment, instance)
    try:
        run = await run_agent(
            environment,
            policy,
            agent,
            max_steps=config.max_steps,
            tools=environment.tools,
            trace=trace,
            max_tokens=config.agent.max_tokens,
        )
        grade = await asyncio.to_thread(environment.grade)
        return Outcome(instance.id, name, grade.resolved, run, trace, run.error)
    except OSError as error:
        return Outcome(instance.id, name, False, Run(), trace, f"{type(error).__name__}: {error}")
    finally:
        await asyncio.to_thread(environment.close)


def token_counter(tokenizer: Path | None) -> CountTokens:
    """Return a function that counts the tokens of messages, exactly with a tokenizer and roughly without one."""
    if tokenizer is None:
        return lambda messages: sum(len(json.dumps(message)) for message in messages) // 4
    chat = ChatFormat.load(tokenizer)
    return lambda messages: len(chat.prompt(messages))


def summarize(config: EvalConfig, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the figures of an evaluation by policy; every task counts, also one whose run failed."""
    tasks = list(dict.fromkeys(outcome.task for outcome in outcomes))
    policies = {name: _figures(policy, [o for o in outcomes if o.policy == name]) for name, policy in config.policies.items()}
    return {"tasks": len(tasks), "policies": policies, "task_ids": tasks}


def _figures(policy: PolicyConfig, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    usage = [use for outcome in outcomes for use in outcome.run.usage]
    late = [use for outcome in outcomes for use in outcome.run.usage[LATE_STEP - 1 :]]
    seconds = [second for outcome in outcomes for second in outcome.run.step_seconds]
    figures: dict[str, Any] = {
        "resolved": _mean([outcome.resolved for outcome in outcomes]),
        "steps": _mean([len(outcome.run.steps) for outcome in outcomes]),
        "prompt_tokens": _mean([use.prompt_tokens for use in usage]),
        "late_prompt_tokens": _mean([use.prompt_tokens for use in late]),
        "cached_tokens": _mean([use.cached_tokens for use in usage]),
        "step_seconds": statistics.median(seconds) if seconds else None,
        "failures": [f"{outcome.task}: {outcome.error}" for outcome in outcomes if outcome.error],
        "resolved_tasks": [outcome.task for outcome in outcomes if outcome.resolved],
    }
    if policy.name in ("sync", "comem"):
        shares = [share for outcome in outcomes if (share := outcome.trace.hidden_share()) is not None]
        figures |= {"k": policy.k, "staleness": _mean([use.staleness for use in usage]), "hidden": _mean(shares)}
    return figures


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    head = ["policy", "resolved", "steps", "prompt tokens a step", f"from step {LATE_STEP} on", "seconds a step", "memory hidden"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for name, figures in results["policies"].items():
        label = f"{name} (k = {figures['k']})" if "k" in figures else name
        cells = [
            label,
            _percent(figures["resolved"]),
            _number(figures["steps"], 1),
            _number(figures["prompt_tokens"], 0),
            _number(figures["late_prompt_tokens"], 0),
            _number(figures["step_seconds"], 3),
            _percent(figures.get("hidden")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
