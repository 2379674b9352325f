"""GRPO's step against the same loss on separate sequences, in parts, and where responses are masked."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest

from rl.objective import ObjectiveConfig
from rl.optimizer import State
from tests.rl.steps import PARAMS, assert_close, gradient_of, make_batch, make_state, make_step, separate_loss


@functools.cache
def stepped(**settings: Any) -> tuple[State, dict[str, jax.Array]]:
    return jax.jit(make_step(**settings))(make_state(), make_batch())


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean"])
def test_a_step_is_that_of_separate_sequences(aggregation: str) -> None:
    settings = ObjectiveConfig(aggregation=aggregation)
    separate = functools.partial(separate_loss, batch=make_batch(), settings=settings)
    value, gradient = jax.jit(jax.value_and_grad(separate))(PARAMS)
    after, metrics = stepped(aggregation=aggregation)
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
    assert float(metrics["gradient_norm"]) == pytest.approx(float(optax.global_norm(gradient)), rel=1e-5)
    assert_close(gradient_of(after), gradient)


def test_micro_batches_add_up_to_the_batch() -> None:
    found, expected = stepped(micro_batches=2), stepped()
    assert_close(gradient_of(found[0]), gradient_of(expected[0]))
    assert_close(found[1], expected[1])


def test_masked_responses_count_for_nothing() -> None:
    batch = make_batch()
    masked = batch._replace(tree=batch.tree._replace(mask=batch.tree.mask.at[:, 1].set(0.0)))
    nonsense = masked._replace(advantages=masked.advantages.at[:, 1].set(1e3), old=masked.old.at[:, 1].set(-50.0))
    step = jax.jit(make_step())
    found, expected = (gradient_of(step(make_state(), each)[0]) for each in (nonsense, masked))
    assert_close(found, expected)
    with pytest.raises(AssertionError):
        assert_close(expected, gradient_of(stepped()[0]))


def test_the_state_that_was_given_is_used_up() -> None:
    given = make_state()
    jax.jit(make_step(), donate_argnums=0)(given, make_batch())
    assert given.params["norm"][...].is_deleted()


def test_a_gradient_that_is_wrong_is_seen() -> None:
    gradient = gradient_of(stepped()[0])
    with pytest.raises(AssertionError):
        assert_close(jax.tree.map(lambda x: x * np.float32(1 + 1e-4), gradient), gradient)
