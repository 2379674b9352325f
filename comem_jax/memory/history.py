"""What happened in a run: the task, its steps, and the summaries written of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from comem_jax.actions import Action


@dataclass(frozen=True)
class Task:
    """What the agent is asked to do. `system`, `text` and `pins` stand verbatim in every prompt."""

    id: str
    text: str
    system: str = ""
    pins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One finished step. `action` is None where the agent answered without a usable tool call."""

    index: int  # 1 is the first step
    thought: str
    action: Action | None
    observation: str


@dataclass(frozen=True)
class Summary:
    """A summary of every step up to and including step `coverage`."""

    text: str
    coverage: int
    tokens: int = 0


@dataclass
class History:
    """The task and its finished steps, in order."""

    task: Task
    steps: list[Step] = field(default_factory=list)

    def add(self, step: Step) -> None:
        """Append the next step; raises `ValueError` where its index is not the next one."""
        if step.index != len(self.steps) + 1:
            raise ValueError(f"step {step.index} does not follow step {len(self.steps)}")
        self.steps.append(step)
