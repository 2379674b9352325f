"""Rejected summaries as rows to train a memory model on: what it read, what it wrote, and what the agent really did.

A summary is rejected where the agent's own next actions are too unlikely under it (a policy's `validate_above`). Every
rejection in a run's log is one row: a prompt for GRPO, with the actions that a better summary must make likely.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from comem_jax.actions import Action
from comem_jax.errors import UserError
from comem_jax.memory.history import Step, Summary, Task
from comem_jax.memory.log import EventLog, PastRun
from comem_jax.memory.prompt import PROMPT_VERSION
from comem_jax.memory.records import decode, dump, read_step, read_summary, read_task
from comem_jax.memory.trace import REJECTED, SUMMARY, SWAP, Span
from rl.trajectories import Trajectory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RejectedRow:
    """One rejected summary of `steps`, all those it covers; the memory model read `base` in place of the first of them.

    `tested` are the steps after them whose actions it was tested by: their mean log-probability a token (natural
    logarithm) is `score`, below the run's `validate_above`. `kept` is the summary that stayed in use, "" for none.
    `prompt_version` says how the memory model was asked (`comem_jax.memory.prompt`).
    """

    run: str
    task: Task
    steps: tuple[Step, ...]
    base: Summary | None
    tested: tuple[Step, ...]
    rejected: str
    kept: str
    score: float
    validate_above: float
    prompt_version: str

    @property
    def reference(self) -> Action | None:
        """The action really taken at the first step that the summary does not cover.

        None where none was called, and where that step did not fit into the prompt that the summary was tested in.
        """
        first = self.tested[0]
        return first.action if first.index == len(self.steps) + 1 else None


def rejected_rows(past: PastRun) -> Iterator[RejectedRow]:
    """Yield a row for every rejection of a run, in the order they happened.

    One is left out, and logged, where the log does not have what the memory model began from.
    """
    finished: dict[int, Summary] = {}  # by version
    used: dict[int, Summary | None] = {0: None}  # by coverage
    for event in past.events:
        facts = event.attributes
        if isinstance(event, Span):
            summary = read_summary(facts) if event.name == SUMMARY else None
            finished |= {summary.version: summary} if summary else {}
        elif event.name == SWAP and facts["version"] in finished:
            used[facts["coverage"]] = finished[facts["version"]]
        elif event.name == REJECTED and facts["base"] not in used:
            log.warning("%s: what a rejected summary of %d steps began from is unknown", past.id, facts["coverage"])
        elif event.name == REJECTED:
            asked = finished.get(facts["version"])
            yield RejectedRow(
                run=past.id,
                task=past.task,
                steps=tuple(past.steps[: facts["coverage"]]),
                base=used[facts["base"]],
                tested=tuple(past.steps[index - 1] for index in facts["tested"]),
                rejected=facts["text"],
                kept=facts["kept"],
                score=facts["score"],
                validate_above=facts["validate_above"],
                prompt_version=asked.prompt_version if asked else "",
            )


def rejected_trajectories(rows: Iterable[RejectedRow]) -> list[Trajectory]:
    """Return the runs that the summaries were rejected in, with the prompt of each of them as a row for GRPO.

    Such a row is the steps that the summary covered, read from where the memory model began then, and the action really
    taken next. Summaries without that action, or asked for in another way than training asks, are left out and logged.
    """
    every = list(rows)
    asked = [row for row in every if row.prompt_version == PROMPT_VERSION]
    kept = [row for row in asked if row.reference is not None]
    if len(kept) < len(every):
        counts = len(every) - len(asked), len(asked) - len(kept)
        log.warning("left out: %d rejected summaries asked for in another way, %d without the next action", *counts)
    return [_trajectory(list(group)) for _, group in groupby(kept, lambda row: (row.run, row.base))]


def _trajectory(rows: Sequence[RejectedRow]) -> Trajectory:
    """Return the trajectory of rows of one run and one base: the longest holds the steps of the others."""
    longest = max(rows, key=lambda row: len(row.steps) + len(row.tested))
    lengths = sorted({len(row.steps) + 1 for row in rows})
    begin = longest.base.coverage if longest.base else 0
    steps = (*longest.steps, *longest.tested)
    return Trajectory(f"{longest.run} from {begin}", longest.task, steps, longest.base, tuple(lengths))


def write_rows(log: str | Path, out: str | Path) -> int:
    """Write the rows of every run in a log as JSON lines, and return how many there are.

    The log may be in use. Raises `UserError` for a file that is no log.
    """
    with EventLog(log, read_only=True) as events:
        runs = [past for info in events.runs() if (past := events.load(info.id)) is not None]
    lines = [dump(asdict(row)) + b"\n" for past in runs for row in rejected_rows(past)]
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_bytes(b"".join(lines))
    return len(lines)


def read_rows(path: str | Path) -> Iterator[RejectedRow]:
    """Yield the rows of a file that `write_rows` made; raises `UserError` for one that is not there or is another."""
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}")
    for number, line in enumerate(decode(Path(path).read_bytes()).split("\n")[:-1], start=1):
        try:
            row = _row(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}, line {number} is no rejected summary as rl.rejections writes them") from None
        yield row


def _row(record: dict[str, Any]) -> RejectedRow:
    base = read_summary(record["base"]) if record["base"] else None
    steps, tested = _steps(record["steps"]), _steps(record["tested"])
    return RejectedRow(**record | {"task": read_task(record["task"]), "steps": steps, "tested": tested, "base": base})


def _steps(records: Iterable[dict[str, Any]]) -> tuple[Step, ...]:
    return tuple(read_step(record) for record in records)
