"""The one prompt builder: what the agent and the memory model read.

Training, serving and evaluation all call these functions, so that a model is trained on exactly the prompts it serves.

The agent's prompt is laid out for the server's prefix cache (design: a swap changes nothing left of the summary):

    system | task and pins | summary | raw tail | volatile

The memory model's prompt is `system | task and pins | history | closing instruction`: between two launches only its end
changes, so a prefix-caching server prefills the new steps alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from comem_jax.memory.history import Step, Summary, Task

Message = dict[str, Any]

OMITTED_OBSERVATION = "[observation omitted]"
OMITTED_STEPS = "[earlier steps omitted]"
SUMMARY_HEADER = "Summary of the earlier steps:\n"
NO_ACTION = "No tool call was found in the answer. Call exactly one tool."
SUMMARY_INSTRUCTION = "Summarize the steps so far for the agent that goes on with the task."


@dataclass(frozen=True)
class View:
    """What the agent is shown of a history.

    `steps` is the raw tail; `masked` counts the steps at its start whose observation is replaced by a placeholder;
    `omitted` says that steps before the tail are in no summary; `volatile` is a last line such as the steps remaining.
    """

    task: Task
    steps: Sequence[Step]
    summary: Summary | None = None
    masked: int = 0
    omitted: bool = False
    volatile: str | None = None


def agent_messages(view: View) -> list[Message]:
    """Return the chat messages of the agent's next call."""
    messages = _head(view.task)
    if view.summary is not None:
        messages.append({"role": "user", "content": SUMMARY_HEADER + view.summary.text})
    elif view.omitted:
        messages.append({"role": "user", "content": OMITTED_STEPS})
    for position, step in enumerate(view.steps):
        messages += step_messages(step, masked=position < view.masked)
    if view.volatile:
        messages.append({"role": "user", "content": view.volatile})
    return messages


def memory_messages(task: Task, steps: Sequence[Step], base: Summary | None = None) -> list[Message]:
    """Return the chat messages that ask the memory model for a summary of `base` (if any) and `steps`."""
    messages = agent_messages(View(task, steps, base))
    messages.append({"role": "user", "content": SUMMARY_INSTRUCTION})
    return messages


def step_messages(step: Step, masked: bool = False) -> list[Message]:
    """Return one step as messages: the assistant's call and the tool's answer, never parted."""
    observation = OMITTED_OBSERVATION if masked else step.observation
    if step.action is None:
        return [{"role": "assistant", "content": step.thought}, {"role": "user", "content": observation}]
    call = step.action.to_call(f"call_{step.index}")
    return [
        {"role": "assistant", "content": step.thought, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": observation},
    ]


def _head(task: Task) -> list[Message]:
    text = task.text + "".join(f"\nConstraint: {pin}" for pin in task.pins)
    system = [{"role": "system", "content": task.system}] if task.system else []
    return [*system, {"role": "user", "content": text}]
