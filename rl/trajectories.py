"""Trajectories, stored once, and the rows that are prefixes of them, as an index."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from comem_jax.actions import Action
from comem_jax.errors import UserError
from comem_jax.memory.history import Step, Summary, Task
from comem_jax.memory.records import decode, dump, read_step, read_summary, read_task

SHORTEST, LONGEST = 2, 40  # steps of a prefix, the reference among them, as published


@dataclass(frozen=True)
class Trajectory:
    """One run: what the agent was asked, and every step it took.

    The memory model reads the summary `base`, if there is one, in place of the steps that it covers. With `lengths`
    only the prefixes of so many steps are rows.
    """

    id: str
    task: Task
    steps: tuple[Step, ...]
    base: Summary | None = None
    lengths: tuple[int, ...] | None = None

    def is_reference(self, step: Step) -> bool:
        """Return whether a row ends in the action of this step."""
        return step.action is not None and (self.lengths is None or step.index in self.lengths)


Split = tuple[list[Trajectory], list[Trajectory]]  # (training, held out)


@dataclass(frozen=True)
class Prefix:
    """One row: the first `length` steps of a trajectory, of which the last one's action is the reference.

    `row` is its number in the index, the same every time the same trajectories are loaded.
    """

    row: int
    trajectory: Trajectory
    length: int

    @property
    def history(self) -> tuple[Step, ...]:
        """The steps before the reference: what a summary may tell of."""
        return self.trajectory.steps[: self.length - 1]

    @property
    def read(self) -> tuple[Step, ...]:
        """Those of them that the trajectory's base does not cover: what the memory model may read."""
        base = self.trajectory.base
        return self.history[base.coverage if base else 0 :]

    @property
    def reference(self) -> Action:
        """The action that the agent really took."""
        action = self.trajectory.steps[self.length - 1].action
        if action is None:
            raise ValueError(f"step {self.length} of {self.trajectory.id} has no action")
        return action


class Prefixes:
    """Every row of some trajectories; a Grain source (`len`, `[]`).

    A row is a pair of numbers in `index` [rows, 2] (trajectory, length); the trajectories themselves are kept once.
    There is a row for each length from `shortest` to `longest` at which the trajectory's step is a reference.
    """

    def __init__(self, trajectories: Iterable[Trajectory], shortest: int = SHORTEST, longest: int = LONGEST) -> None:
        self.trajectories = tuple(trajectories)
        pairs = [
            (number, step.index)
            for number, trajectory in enumerate(self.trajectories)
            for step in trajectory.steps[shortest - 1 : longest]
            if trajectory.is_reference(step)
        ]
        self.index = np.asarray(pairs, np.int32).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Prefix:
        number, length = self.index[row].tolist()
        return Prefix(int(row), self.trajectories[number], length)

    def digest(self) -> str:
        """Return what the rows' order rests on, in a few letters: a resumed run must find the same."""
        names = json.dumps([trajectory.id for trajectory in self.trajectories])
        return hashlib.sha256(names.encode() + self.index.tobytes()).hexdigest()[:16]


def split_by_task(trajectories: Iterable[Trajectory], share: float) -> Split:
    """Part trajectories so that about a `share` of the tasks is held out, always the same ones."""
    parts: Split = ([], [])
    for trajectory in trajectories:
        parts[is_held_out(trajectory.task.id, share)].append(trajectory)
    return parts


def is_held_out(name: str, share: float) -> bool:
    """Return whether a task of that name is in the held-out `share`: by a hash of the name, so that it never moves."""
    return int(hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16) < share * 2**32


def write_trajectories(trajectories: Sequence[Trajectory], path: Path) -> None:
    """Write trajectories as JSON lines, all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(b"".join(dump(asdict(trajectory)) + b"\n" for trajectory in trajectories))
    temporary.replace(path)


def read_trajectories(path: Path) -> list[Trajectory]:
    """Read what `write_trajectories` wrote."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    records = [json.loads(line) for line in decode(path.read_bytes()).split("\n")[:-1]]
    return [_read(record) for record in records]


def _read(record: dict[str, Any]) -> Trajectory:
    base, lengths = record.get("base"), record.get("lengths")
    return Trajectory(
        record["id"],
        read_task(record["task"]),
        tuple(map(read_step, record["steps"])),
        read_summary(base) if base else None,
        tuple(lengths) if lengths else None,
    )
