"""Rows over shared trunks: none is lost, each is read as if alone, and the loss and its gradients stay the same."""

import functools
import os
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from comem_jax.chat import ChatFormat
from comem_jax.errors import UserError
from comem_jax.models import load
from envs.pocket.weights import STEM, TOKENIZER
from rl import pocket
from rl.data import RowStore
from rl.sft import loss_fn
from rl.trunks import Trunks, trunk_batches
from tests.rl.trees import assert_same
from tests.rl.trunk_rows import as_packed_rows, make_store, seen, stored

MARK = [90, 91]
SHRINK = 0.63


def row(tokens: list[int], loss: list[float]) -> dict[str, np.ndarray]:
    return {"tokens": np.asarray(tokens, np.int32), "loss": np.asarray(loss, np.float32)}


@pytest.fixture(scope="module")
def pocket_rows() -> dict[str, RowStore]:
    """Rows of two tasks; every target of a memory row has a weight of its own."""
    chat, rng = ChatFormat.load(TOKENIZER), np.random.default_rng(0)
    tasks = [pocket.rows_of_seed("train", index, chat) for index in range(2)]
    kinds = {kind: [row(r.tokens, r.loss) for task in tasks for r in task[kind]] for kind in ("memory", "agent")}
    for each in kinds["memory"]:
        each["loss"] *= rng.uniform(0.2, 3, len(each["loss"])).astype(np.float32)
    return {kind: make_store(rows) for kind, rows in kinds.items()}


tokens = st.lists(st.integers(1, 3), min_size=1, max_size=10)
losses = st.lists(st.sampled_from([0.0, 0.5, 1.0, 4.0]), max_size=6)


@st.composite
def rows_of_trajectories(draw: Any) -> list[dict[str, np.ndarray]]:
    """Rows with a closing and targets behind prefixes of a few histories; some have several targets, some none."""
    found = []
    for history in draw(st.lists(tokens, min_size=1, max_size=3)):
        for _ in range(draw(st.integers(1, 4))):
            prompt = history[: draw(st.integers(1, len(history)))] + draw(st.lists(st.integers(4, 6), max_size=3))
            weights = draw(losses)
            first = draw(st.sampled_from([0.0, 1.0]))  # nobody can learn to guess it: nothing stands before it
            found.append(row(prompt + [7] * len(weights), [first, *[0.0] * (len(prompt) - 1), *weights]))
    return found


@settings(deadline=None)
@given(rows_of_trajectories(), st.integers(1, 4))
def test_every_row_is_read_as_if_it_were_alone(rows: list[dict[str, np.ndarray]], cuts: int) -> None:
    trees = Trunks(make_store(rows), 20, cuts)
    found = [list(seen(trees[i])) for i in range(len(trees))]
    assert [each for tree in found for each in tree] == [stored(each) for each in rows if each["loss"][1:].any()]
    assert all(len(tree) <= cuts for tree in found)
    assert all(len(trees[i]["tokens"]) <= 20 for i in range(len(trees)))


def test_a_tree_has_the_rows_of_one_run_each_token_once(pocket_rows: dict[str, RowStore]) -> None:
    rows = pocket_rows["memory"]
    trees = Trunks(rows, 1024, 8)
    assert [len(list(seen(trees[i]))) for i in range(len(trees))] == [3, 3]
    longest = [max(len(rows[i]["tokens"]) for i in run) for run in (range(3), range(3, 6))]
    alone = [sum(len(rows[i]["tokens"]) for i in run) for run in (range(3), range(3, 6))]
    for i in range(2):
        assert longest[i] < len(trees[i]["tokens"]) < 0.75 * alone[i]
    assert [len(Trunks(rows, length, cuts)) for length, cuts in ((1024, 2), (1024, 1))] == [4, 6]


def test_rows_that_share_less_than_half_stay_apart() -> None:
    near, far = ([1, 2, 3, *rest] for rest in ([5, 6, 7], [7, 8, 9, 9]))
    rows = [row([*prompt, 4], [0] * len(prompt) + [1]) for prompt in (near, near[:-1] + [8], far, far[2:])]
    assert [len(list(seen(tree))) for tree in Trunks(make_store(rows[:2]), 40, 4)] == [2]
    trees = Trunks(make_store([*rows, rows[0]]), 40, 4)
    assert [len(list(seen(trees[i]))) for i in range(len(trees))] == [3, 1, 1]


@pytest.fixture(scope="module")
def gradient() -> Any:
    """The loss, the metrics and the gradients of a batch; the model is one that is right about half of the time."""
    graphdef, params = nnx.split(load(STEM))
    less_sure = jax.tree.map(lambda x: SHRINK * x, params)
    compiled = jax.jit(jax.value_and_grad(lambda p, b: loss_fn(graphdef, p, b), has_aux=True))
    return functools.partial(compiled, less_sure)


@pytest.mark.parametrize("kind", ["memory", "agent"])
def test_loss_accuracy_and_gradients_are_those_of_packed_rows(
    pocket_rows: dict[str, RowStore], gradient: Any, kind: str
) -> None:
    batch = next(iter(trunk_batches(pocket_rows, {kind: 1.0}, 640, 1, 0, cuts=3)))
    found, expected = gradient(batch), gradient(as_packed_rows(batch, 4, 544))
    assert 0.1 < expected[0][1]["accuracy"] < 0.95
    assert set(found[0][1]) == {"loss", "accuracy"}
    assert_same(found, expected)


def test_eight_devices_give_the_same_numbers() -> None:
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    script = [sys.executable, "-m", "tests.rl.trunks_on_eight_devices"]
    root = Path(__file__).parents[2]
    done = subprocess.run(script, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def history_rows(count: int, token: int) -> list[dict[str, np.ndarray]]:
    """Rows of runs of three, whose target says which of all it is."""
    return [row([token, *[i // 3] * (3 + i % 3), 7, i], [0] * (5 + i % 3) + [1]) for i in range(count)]


def test_every_row_is_drawn_once_before_any_twice() -> None:
    stores = {"kind": make_store(history_rows(12, 1))}
    drawn: list[int] = []
    for batch in islice(trunk_batches(stores, {"kind": 1.0}, 16, 2, 0, cuts=3), 40):
        drawn += batch["targets"][batch["weights"] > 0].tolist()
    counts = np.bincount(drawn[:96], minlength=12)
    assert counts.max() - counts.min() <= 6  # the packer holds some back in its open sequences
    assert set(drawn) == set(range(12))


def test_the_mix_is_one_of_rows_and_not_of_trees() -> None:
    apart = [row([2, 100 + i, i, 7, i], [0, 0, 0, 0, 1]) for i in range(12)]
    stores = {"shared": make_store(history_rows(12, 1)), "apart": make_store(apart)}
    count: Counter[int] = Counter()
    for batch in islice(trunk_batches(stores, {"shared": 0.5, "apart": 0.5}, 16, 2, 0, cuts=3), 200):
        for sequence in (dict(zip(batch, arrays)) for arrays in zip(*batch.values())):
            count.update(read[0] for read, _, _ in seen(sequence))
    assert abs(count[1] / count.total() - 0.5) < 0.02


def test_batches_go_on_where_they_stood() -> None:
    stores = {"kind": make_store(history_rows(30, 1))}

    def draw() -> Any:
        return iter(trunk_batches(stores, {"kind": 1.0}, 16, 2, 3, cuts=2))

    batches = draw()
    states, whole = zip(*((batches.get_state(), next(batches)) for _ in range(30)))
    for step in (0, 1, 7, 16, 29):
        later = draw()
        later.set_state(states[step])
        for expected in whole[step:]:
            found = next(later)
            assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_long_rows_are_shortened_and_keep_every_target() -> None:
    rows = [row([*range(100, 100 + size), i], [0] * size + [1]) for i, size in enumerate((20, 30, 8, 40))]
    stores = {"kind": make_store(rows)}
    drawn = iter(trunk_batches(stores, {"kind": 1.0}, 16, 1, 0, cuts=4, left_out=MARK))
    found = [
        (read, target) for batch in islice(drawn, 12) for read, target, _ in seen({k: x[0] for k, x in batch.items()})
    ]
    assert {target for _, target in found} == {(0,), (1,), (2,), (3,)}
    middles = {target[0]: tuple(read[7:9]) for read, target in found}
    assert [middles[i] for i in (0, 1, 3)] == [(90, 91)] * 3
    assert max(len(read) for read, _ in found) == 16
    with pytest.raises(UserError, match="the longest row has 41 tokens"):
        trunk_batches(stores, {"kind": 1.0}, 16, 1, 0, cuts=4)
