"""Trajectories are stored once, their prefixes are an index, and tasks never move between the splits."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from comem_jax.errors import UserError
from comem_jax.memory.history import Summary
from rl.trajectories import Prefixes, is_held_out, read_trajectories, split_by_task, write_trajectories
from tests.rl.trajectories import trajectory


def test_every_prefix_that_ends_in_an_action_is_a_row() -> None:
    rows = Prefixes([trajectory("a", 4), trajectory("short", 1), trajectory("b", 3, without_action=(2,))])
    assert [(row.trajectory.id, row.length) for row in rows] == [("a", 2), ("a", 3), ("a", 4), ("b", 3)]
    assert [row.row for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert [step.index for step in row.history] == list(range(1, row.length))
        assert row.reference.arguments == {"line": row.length}


def test_lengths_are_bounded_on_both_sides() -> None:
    assert [row.length for row in Prefixes([trajectory("a", 60)])] == list(range(2, 41))
    assert [row.length for row in Prefixes([trajectory("a", 9)], shortest=4, longest=6)] == [4, 5, 6]


def test_a_trajectory_may_have_rows_of_some_lengths_only() -> None:
    some = replace(trajectory("a", 9, without_action=(6,)), lengths=(4, 6, 8))
    assert [row.length for row in Prefixes([some])] == [4, 8]


def test_the_memory_model_reads_on_from_a_base() -> None:
    based = replace(trajectory("a", 5), base=Summary("so far", 2))
    [row] = Prefixes([based], shortest=5)
    assert [step.index for step in row.read] == [3, 4]
    assert [step.index for step in row.history] == [1, 2, 3, 4]


def test_rows_share_the_steps_of_their_trajectory() -> None:
    runs = [trajectory(f"run {i}", 40) for i in range(200)]
    tracemalloc.start()
    rows = Prefixes(runs)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(rows) == 200 * 39
    assert rows.index.nbytes == 8 * len(rows)
    assert kept < 40 * len(rows)  # references to 20 steps a row would take 160 bytes
    for row in (rows[5], rows[len(rows) - 1]):
        assert all(step is row.trajectory.steps[i] for i, step in enumerate(row.history))


def test_the_digest_tells_the_rows_apart() -> None:
    rows = Prefixes([trajectory("a", 5), trajectory("b", 5)])
    assert rows.digest() == Prefixes([trajectory("a", 5), trajectory("b", 5)]).digest()
    others = [[trajectory("a", 5), trajectory("c", 5)], [trajectory("a", 5), trajectory("b", 6)], [trajectory("a", 5)]]
    assert rows.digest() not in [Prefixes(each).digest() for each in others]


def test_tasks_are_held_out_by_name_alone() -> None:
    runs = [trajectory(f"task-{i % 500}", 3) for i in range(1000)]
    training, held_out = split_by_task(runs, 0.2)
    assert len(training) + len(held_out) == len(runs)
    assert not {run.task.id for run in training} & {run.task.id for run in held_out}
    assert 60 < len({run.task.id for run in held_out}) < 140
    assert split_by_task(runs[::-1], 0.2)[1] == held_out[::-1]
    assert is_held_out("django__django-11099", 0.5) and not is_held_out("django__django-10914", 0.5)  # never moves


def test_trajectories_survive_the_disk(tmp_path: Path) -> None:
    runs = [trajectory("a", 3, without_action=(2,)), trajectory("line\u2028break \ud800", 2)]
    runs.append(replace(trajectory("based", 5), base=Summary("so far", 2, cites=(1,)), lengths=(4, 5)))
    write_trajectories(runs, tmp_path / "runs.jsonl")
    assert read_trajectories(tmp_path / "runs.jsonl") == runs
    with pytest.raises(UserError, match=r"none\.jsonl"):
        read_trajectories(tmp_path / "none.jsonl")
